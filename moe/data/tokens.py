"""Token ids in memory-mapped arrays: what `scripts/tokenize_corpus.py` writes and training reads without TensorFlow.

A directory holds `meta.json` and, for each split and feature, `SPLIT.FEATURE.bin` (ids one after another, 16 or 32
bits) and `SPLIT.FEATURE.offsets.npy` (where each document begins). A SentencePiece model is copied beside them.
"""

import json
import os
import shutil
from collections.abc import Iterator

import numpy as np

from moe.config import ConfigError
from moe.data.documents import BLOCK_DOCUMENTS, Documents, Ragged, Source, stable_hash
from moe.data.errors import DataError
from moe.data.vocabulary import StoredVocabulary, Vocabulary

FORMAT = 1
META = "meta.json"
_BLOCK_TOKENS = 4 * 2**20


class TokensSource:
  """One split of a token directory. Each block is a shard, since any part of an array is read as fast as another.

  Raises:
    ConfigError: no such directory or split. DataError: the files are not as long as `meta.json` says.
  """

  varies = False

  def __init__(self, directory: str, split: str):
    meta = read_meta(directory)
    if split not in meta["splits"]:
      raise ConfigError("split", split, f"{directory} has {', '.join(meta['splits'])}")
    self._features = {name: _open(directory, split, name, meta) for name in meta["features"]}
    self.supervised = "inputs" in self._features
    self._bounds = _block_bounds(self._features["targets"].offsets)
    self.num_shards = max(1, len(self._bounds) - 1)
    self.fingerprint = f"{stable_hash(json.dumps(meta['splits'][split]), meta['vocabulary']['fingerprint']):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    del epoch
    if start == 0 and len(self._bounds) > 1:
      first, last = self._bounds[shard : shard + 2]
      yield Documents(**{k: Ragged(v.flat, v.offsets[first : last + 1]) for k, v in self._features.items()})

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError("tokens", "a directory of token ids holds no text")


def read_meta(directory: str) -> dict:
  """The directory's description.

  Raises:
    ConfigError: there is none. DataError: it is damaged or of another format.
  """
  path = os.path.join(directory, META)
  if not os.path.isfile(path):
    raise ConfigError("path", directory, f"has no {META}; make the directory with scripts/tokenize_corpus.py")
  try:
    with open(path, encoding="utf-8") as file:
      meta = json.load(file)
  except (json.JSONDecodeError, UnicodeDecodeError):
    raise DataError(path, "is damaged: no JSON") from None
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise DataError(path, f"is not of format {FORMAT}; make the directory again with scripts/tokenize_corpus.py")
  return meta


def stored_vocabulary(directory: str) -> StoredVocabulary:
  return StoredVocabulary(directory, read_meta(directory)["vocabulary"])


def write_split(directory: str, split: str, source: Source, vocabulary: Vocabulary, progress) -> dict:
  """Writes one split's arrays from every block of the source, and returns its entry of `meta["splits"]`.

  progress: called with the number of documents of each block.
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
    np.save(_path(directory, split, name, "offsets.npy"), offsets[name])
  return {"documents": len(offsets["targets"]) - 1, "tokens": {name: int(offsets[name][-1]) for name in names}}


def write_meta(directory: str, vocabulary: Vocabulary, supervised: bool, splits: dict) -> None:
  """Writes `meta.json`, and the SentencePiece model beside it so that the directory can be read alone."""
  name = vocabulary.name
  if name != "bytes":
    name = "vocabulary.model"
    shutil.copyfile(vocabulary.name, os.path.join(directory, name))
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
  with open(os.path.join(directory, META), "w", encoding="utf-8") as file:
    json.dump(meta, file)


def token_dtype(size: int) -> type[np.unsignedinteger]:
  return np.uint16 if size <= 2**16 else np.uint32


class _Writers:
  """One open file a feature."""

  def __init__(self, directory: str, split: str, names: tuple[str, ...]):
    self.files = {name: open(_path(directory, split, name, "bin"), "wb") for name in names}  # noqa: SIM115

  def __enter__(self) -> "_Writers":
    return self

  def __exit__(self, *unused) -> None:
    for file in self.files.values():
      file.close()


def _path(directory: str, split: str, feature: str, suffix: str) -> str:
  return os.path.join(directory, f"{split}.{feature}.{suffix}")


def _open(directory: str, split: str, feature: str, meta: dict) -> Ragged:
  dtype, entry = np.dtype(meta["dtype"]), meta["splits"][split]
  tokens, documents = entry["tokens"][feature], entry["documents"]
  path = _path(directory, split, feature, "bin")
  expected = tokens * dtype.itemsize
  found = os.path.getsize(path) if os.path.isfile(path) else 0
  if found != expected:
    raise DataError(path, f"has {found} bytes where {META} says {expected}; make the directory again")
  path_of_offsets = _path(directory, split, feature, "offsets.npy")
  try:
    offsets = np.load(path_of_offsets)
  except (OSError, ValueError, EOFError):
    raise DataError(path_of_offsets, "is missing or damaged; make the directory again") from None
  if len(offsets) != documents + 1 or offsets[-1] != tokens:
    raise DataError(path_of_offsets, f"does not fit {META}; make the directory again")
  # An empty file cannot be mapped.
  flat = np.memmap(path, dtype, "r") if tokens else np.zeros(0, dtype)
  return Ragged(flat, offsets)


def _block_bounds(offsets: np.ndarray) -> np.ndarray:
  """Document numbers where blocks begin, the last one's end included: bounded in documents and tokens."""
  bounds = [0]
  while bounds[-1] < len(offsets) - 1:
    first = bounds[-1]
    fitting = int(np.searchsorted(offsets, offsets[first] + _BLOCK_TOKENS, "right")) - 1
    bounds.append(min(max(fitting, first + 1), first + BLOCK_DOCUMENTS, len(offsets) - 1))
  return np.array(bounds)
