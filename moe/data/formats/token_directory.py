"""The format of a token directory.

It has `meta.json` and, for each split and feature, `SPLIT.FEATURE.bin` (all ids, 16 or 32 bits each) and
`SPLIT.FEATURE.offsets.npy` (where each document begins). A SentencePiece model is copied next to them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from moe.config import ConfigError
from moe.data.documents import Ragged
from moe.data.errors import DataError
from moe.data.source import Source
from moe.data.vocabulary import Vocabulary
from moe.files import AnyPath, in_bucket, os_errors, read_bytes, size_of

FORMAT = 1
META = "meta.json"
_OF_VOCABULARY = ("name", "size", "extra_ids", "fingerprint", "byte_lengths")


@dataclasses.dataclass(frozen=True)
class Feature:
  """One feature of a split.

  Attributes:
    path: of its ids.
    flat: all ids, memory-mapped; None in a bucket, where each part is read when it is asked for.
    dtype: of an id.
    offsets: `[n + 1]`, where each document begins.
  """

  path: AnyPath
  flat: np.ndarray | None
  dtype: np.dtype
  offsets: np.ndarray

  def part(self, first: int, last: int) -> Ragged:
    """The documents from `first` to `last`.

    Raises:
      DataError: the bucket does not give them.
    """
    offsets = self.offsets[first : last + 1]
    if self.flat is not None:
      return Ragged(self.flat, offsets)
    start, tokens = int(offsets[0]), int(offsets[-1] - offsets[0])
    try:
      content = read_bytes(self.path, start * self.dtype.itemsize, tokens * self.dtype.itemsize) if tokens else b""
    except OSError as error:
      raise DataError(self.path, f"cannot be read ({error.strerror})") from None
    if len(content) != tokens * self.dtype.itemsize:
      raise DataError(self.path, f"has ended at token {start + len(content) // self.dtype.itemsize}")
    return Ragged(np.frombuffer(content, self.dtype), offsets - start)


def read_meta(directory: AnyPath) -> dict:
  """The directory's description.

  Raises:
    ConfigError: it is missing. DataError: it is damaged or of another format.
  """
  path = directory / META
  try:
    meta = json.loads(read_bytes(path))
  except (FileNotFoundError, NotADirectoryError):
    expected = f"expected a directory with {META}, made by scripts/tokenize_corpus.py"
    raise ConfigError("path", str(directory), expected) from None
  except OSError as error:
    raise DataError(path, f"cannot be read ({error.strerror})") from None
  except (ValueError, RecursionError):
    raise DataError(path, "is damaged: not JSON") from None
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise DataError(path, f"is not of format {FORMAT}; make the directory again with scripts/tokenize_corpus.py")
  vocabulary = meta.get("vocabulary")
  described = isinstance(vocabulary, dict) and vocabulary.keys() >= set(_OF_VOCABULARY)
  whole = described and len(vocabulary["byte_lengths"]) == vocabulary["size"]
  if not whole or not meta.keys() >= {"dtype", "features", "splits"}:
    raise DataError(path, "is damaged: parts are missing; make the directory again")
  return meta


def open_feature(directory: AnyPath, split: str, feature: str, meta: dict) -> Feature:
  """One feature of a split, memory-mapped, or to be read from a bucket.

  Raises:
    DataError: a file is missing, or does not have the length in `meta`.
  """
  dtype, entry = np.dtype(meta["dtype"]), meta["splits"][split]
  tokens, documents = entry["tokens"][feature], entry["documents"]
  path = feature_path(directory, split, feature, "bin")
  expected = tokens * dtype.itemsize
  try:
    found = size_of(path)
  except FileNotFoundError:
    found = 0
  except OSError as error:
    raise DataError(path, f"cannot be read ({error.strerror})") from None
  if found != expected:
    raise DataError(path, f"has {found} bytes, expected {expected} from {META}; make the directory again")
  path_of_offsets = feature_path(directory, split, feature, "offsets.npy")
  try:
    with os_errors(path_of_offsets), path_of_offsets.open("rb") as file:
      offsets = np.load(file)
  except (OSError, ValueError, EOFError):
    raise DataError(path_of_offsets, "is missing or damaged; make the directory again") from None
  ends = len(offsets) == documents + 1 and offsets[0] == 0 and offsets[-1] == tokens
  if not ends or (np.diff(offsets) < 0).any():
    raise DataError(path_of_offsets, f"does not match {META}; make the directory again")
  flat = None
  if not in_bucket(path):
    # An empty file cannot be mapped.
    flat = np.memmap(path, dtype, "r") if tokens else np.zeros(0, dtype)
  return Feature(path, flat, dtype, offsets)


def write_split(
  directory: pathlib.Path, split: str, source: Source, vocabulary: Vocabulary, progress: Callable[[int], object]
) -> dict:
  """Writes the arrays of one split.

  Args:
    directory: exists.
    split: the name of the split.
    source: its documents.
    vocabulary: of the source's ids.
    progress: called after each block with its number of documents.

  Returns:
    The split's entry of `meta["splits"]`.
  """
  names = ("inputs", "targets") if source.supervised else ("targets",)
  dtype = token_dtype(vocabulary.size)
  lengths: dict[str, list[np.ndarray]] = {name: [] for name in names}
  with _Writers(directory, split, names) as writers:
    for shard in range(source.num_shards):
      for block in source.blocks(shard, 0, 0):
        for name in names:
          ragged = getattr(block, name)
          writers.files[name].write(np.asarray(ragged.flat).astype(dtype).tobytes())
          lengths[name].append(ragged.lengths)
        progress(len(block))
  offsets = {name: np.concatenate([[0], *lengths[name]]).cumsum().astype(np.int64) for name in names}
  for name in names:
    np.save(feature_path(directory, split, name, "offsets.npy"), offsets[name])
  return {"documents": len(offsets["targets"]) - 1, "tokens": {name: int(offsets[name][-1]) for name in names}}


def write_meta(directory: pathlib.Path, vocabulary: Vocabulary, supervised: bool, splits: dict) -> None:
  """Writes `meta.json`, and the SentencePiece model, so that the directory is complete."""
  name = vocabulary.name
  if name != "bytes":
    name = "vocabulary.model"
    (directory / name).write_bytes(vocabulary.model)
  meta = {
    "format": FORMAT,
    "dtype": np.dtype(token_dtype(vocabulary.size)).name,
    "features": ["inputs", "targets"] if supervised else ["targets"],
    "splits": splits,
    "vocabulary": {
      "name": name,
      "size": vocabulary.size,
      "extra_ids": vocabulary.extra_ids,
      "fingerprint": vocabulary.fingerprint,
      "byte_lengths": vocabulary.byte_lengths().tolist(),
    },
  }
  with (directory / META).open("w", encoding="utf-8") as file:
    json.dump(meta, file)


def token_dtype(size: int) -> type[np.unsignedinteger]:
  """The narrowest type for ids below `size`."""
  return np.uint16 if size <= 2**16 else np.uint32


class _Writers:
  """One open file per feature."""

  def __init__(self, directory: pathlib.Path, split: str, names: tuple[str, ...]):
    self.files = {name: feature_path(directory, split, name, "bin").open("wb") for name in names}

  def __enter__(self) -> "_Writers":
    return self

  def __exit__(self, *unused) -> None:
    for file in self.files.values():
      file.close()


def feature_path(directory: AnyPath, split: str, feature: str, suffix: str) -> AnyPath:
  """The file of a feature: "bin" its ids, "offsets.npy" where each document begins."""
  return directory / f"{split}.{feature}.{suffix}"
