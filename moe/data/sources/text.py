"""Your own text: plain files and JSON lines, compressed or not, by a glob.

A plain file is one document, a large one is cut at blank lines; each line of JSON lines is one document. A JSON line
with a field "split" belongs to that split. Of all other documents an evenly spaced fraction is held out for validation,
unless validation files are given. Where they are too few for that, the same fraction of each is held out: its end.
"""

import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

from moe.config import require
from moe.data.documents import BLOCK_CHARACTERS, BLOCK_DOCUMENTS, held_out, stable_hash
from moe.data.errors import DataError
from moe.data.formats.json_lines import check_form, is_json_lines, read_records
from moe.data.formats.text_files import check_text, decode_text, open_bytes, read_bytes, read_start
from moe.data.source import SPLITS, SourceConfig, TextSource, require_split
from moe.data.vocabulary import Vocabulary

WHOLE_FILE = 256 * 1024  # bytes: a plain file up to this size is one document
PIECE = 32 * 1024  # bytes: a larger one is cut at the first blank line after this many


@dataclasses.dataclass(frozen=True)
class TextConfig(SourceConfig, name="text"):
  """Text files.

  Attributes:
    path: glob of the files. A name with wildcard characters that exists as it is written is taken literally.
    validation_path: glob of validation files, which are not trained on even if `path` matches them, unless that matches
      no others; if empty, a fraction of the documents of `path` is held out.
    validation_fraction: of the documents.
    text_key: the field of JSON lines that has the text.
    on_bad_record: what to do about a line that is not a JSON record with a text: end with an "error", or "skip" it. The
      first one of a file is printed, and their number at its end.
  """

  path: str
  validation_path: str = ""
  validation_fraction: float = 0.05
  text_key: str = "text"
  on_bad_record: Literal["error", "skip"] = "error"

  def __post_init__(self):
    require(bool(self.path.strip()), "path", self.path, "expected the path of a file, or a glob of files")
    fraction = self.validation_fraction
    require(0 < fraction < 1, "validation_fraction", fraction, "expected between 0 and 1")

  @property
  def corpus(self) -> str:
    return self.path

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> "FilesSource":
    return FilesSource(vocabulary, self, split)


class FilesSource(TextSource):
  """The documents of one split of the files that a glob matches.

  Every file of JSON lines is a shard; plain files are grouped into shards of about one block.

  Raises:
    ConfigError: the glob matches nothing. DataError: a file cannot be read, is empty, damaged, binary or not UTF-8; or
      no document names a split that is neither "train" nor "validation".
  """

  def __init__(self, vocabulary: Vocabulary, config: TextConfig, split: str):
    super().__init__(vocabulary)
    self._config, self._split = config, split
    self._whole = "validation" if split == "validation" and config.validation_path else "train"
    field = "validation_path" if self._whole == "validation" else "path"
    # Names are relative to the part of the glob without wildcards: the same wherever the corpus is.
    paths, self._root = _find(field, getattr(config, field))
    if config.validation_path and self._whole == "train":
      apart = {os.path.realpath(path) for path in _find("validation_path", config.validation_path)[0]}
      paths = [path for path in paths if os.path.realpath(path) not in apart] or paths
    self._skipped: dict[str, tuple[int, int]] = {}  # the last bad line of a file, and how many there are up to it
    for path in paths:
      self._check(path)
    self._shards = list(_shards(paths))
    self.num_shards = len(self._shards)
    self._ends = not config.validation_path and self._is_one_sided()
    if split not in SPLITS:
      self._require_named()
    names = ((self._name(path), os.path.getsize(path)) for path in paths)
    self.fingerprint = f"{stable_hash(split, config.validation_fraction, *names):016x}"

  def _check(self, path: str) -> None:
    """Raises `DataError` for what shows at the beginning of a file: its first record, or the first 64 KiB of text."""
    start = read_start(path)
    check_form(path, start, self._config.text_key)
    if is_json_lines(path):
      next(self._documents(path), None)
    else:
      check_text(start, path)

  def texts(self, shard: int) -> Iterator[str]:
    for path in self._shards[shard]:
      for number, (text, named) in enumerate(self._documents(path)):
        if self._ends and named is None:
          part = _part(text, self._split, self._config.validation_fraction)
          if part:
            yield part
        elif self._split_of(path, number, named) == self._split:
          yield text

  def _documents(self, path: str) -> Iterator[tuple[str, str | None]]:
    """All documents of a file, each with the split that it names."""
    if is_json_lines(path):
      yield from read_records(path, self._config.text_key, lambda line, error: self._bad(path, line, error))
      self._say_skipped(path)
    else:
      yield from _plain(path)

  def _splits(self) -> Iterator[tuple[str, str | None]]:
    """The split of each document that is not empty, and the split that it names."""
    for path in itertools.chain.from_iterable(self._shards):
      for number, (text, named) in enumerate(self._documents(path)):
        if text:
          yield self._split_of(path, number, named), named

  def _split_of(self, path: str, number: int, named: str | None) -> str:
    if named is not None:
      return named
    if self._config.validation_path:
      return self._whole
    return "validation" if held_out(self._name(path), number, self._config.validation_fraction) else "train"

  def _is_one_sided(self) -> bool:
    """Whether the documents, none of which names its split, are too few for both splits to have one.

    Stops reading once both have one: after a few small files, or about 1 / fraction documents of a large one.
    """
    first = None
    for split, named in self._splits():
      if named is not None or first not in (None, split):
        return False
      first = split
    return True

  def _require_named(self) -> None:
    found = set(SPLITS)
    for split, _ in self._splits():
      if split == self._split:
        return
      found.add(split)
    require_split(self._split, sorted(found), self._config.path)

  def _name(self, path: str) -> str:
    return os.path.relpath(path, self._root).replace(os.sep, "/")

  def _bad(self, path: str, line: int, error: DataError) -> None:
    if self._config.on_bad_record == "error":
      raise DataError(error.name, f"{error.problem}; source.on_bad_record = 'skip' leaves such lines out")
    last, count = self._skipped.get(path, (0, 0))
    if line > last:  # the beginning of a file may be read again
      self._skipped[path] = line, count + 1
      self.skipped += 1
      if not count:
        _say(f"skipped {error}")

  def _say_skipped(self, path: str) -> None:
    _, count = self._skipped.get(path, (0, 0))
    if count > 1:
      _say(f"skipped {count} bad records of {path}")


@functools.cache
def _say(line: str) -> None:
  """Prints a line, once in a process: both splits are read from the same files, epoch after epoch."""
  print(line, file=sys.stderr, flush=True)


def _find(field: str, pattern: str) -> tuple[list[str], str]:
  """The files that a glob matches, sorted, and the folder that they have in common.

  The part of the pattern that exists as it is written is taken literally, whatever characters it has.
  """
  parts = pathlib.PurePath(os.path.expanduser(pattern)).parts
  existing = next((n for n in range(len(parts), 0, -1) if os.path.exists(os.path.join(*parts[:n]))), 0)
  fixed, rest = os.path.join("", *parts[:existing]), os.path.join("", *parts[existing:])
  if not rest:
    inside = f"expected files, and this is a folder; {os.path.join(pattern, '**')} matches all files in it"
    require(not os.path.isdir(fixed or "."), field, pattern, inside)
    require(os.path.isfile(fixed), field, pattern, "expected a file on a disk, which can be read again")
    return [fixed], os.path.dirname(fixed) or "."
  found = glob.glob(os.path.join(glob.escape(fixed), rest), recursive=True)
  paths = sorted(path for path in found if os.path.isfile(path))
  require(bool(paths), field, pattern, "expected to match at least one file")
  return paths, fixed or "."


def _part(text: str, split: str, fraction: float) -> str:
  """The part of a document for one split: its end, or what is before that.

  The end begins at a line's beginning, unless that would more than double it.
  """
  if split not in SPLITS:
    return ""
  length = max(1, round(fraction * len(text)))
  begin = len(text) - length
  line = text.rfind("\n", 0, begin) + 1
  begin = line if line and begin - line <= length else begin
  return text[begin:] if split == "validation" else text[:begin]


def _shards(paths: list[str]) -> Iterator[list[str]]:
  """Each JSON-lines file alone; plain files, in order, grouped to about a block."""
  plain, size = [], 0
  for path in paths:
    if is_json_lines(path):
      yield [path]
      continue
    plain.append(path)
    size += os.path.getsize(path)
    if len(plain) == BLOCK_DOCUMENTS or size >= BLOCK_CHARACTERS:
      yield plain
      plain, size = [], 0
  if plain:
    yield plain


def _plain(path: str) -> Iterator[tuple[str, None]]:
  """The file, or the pieces of a large one; only a leading byte-order mark is dropped."""
  with open_bytes(path) as file:
    offset, content = 0, read_bytes(file, WHOLE_FILE + 1, path)
    large = len(content) > WHOLE_FILE
    while content:
      end = _end_of_piece(content) if large else len(content)
      yield decode_text(content[:end], path, offset).removeprefix("\ufeff" if offset == 0 else ""), None
      offset += end
      content = content[end:]
      if large and len(content) < WHOLE_FILE:
        content += read_bytes(file, WHOLE_FILE, path)


def _end_of_piece(content: bytes) -> int:
  """Where to end a piece: after a blank line, else after a line, else between two characters."""
  if len(content) <= 2 * PIECE:
    return len(content)
  for separator in (b"\n\n", b"\n"):
    found = content.find(separator, PIECE, 2 * PIECE)
    if found >= 0:
      return found + len(separator)
  end = 2 * PIECE
  while content[end] & 0xC0 == 0x80:
    end -= 1
  return end
