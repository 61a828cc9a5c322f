"""Your own text: plain files and JSON lines, compressed or not, by a glob.

A plain file is one document, a large one is cut at blank lines; each line of JSON lines is one document. A JSON line
with a field "split" belongs to that split. Of all other documents an evenly spaced fraction is held out for validation,
unless validation files are given.
"""

import dataclasses
import glob
import json
import os
from collections.abc import Iterator, Mapping

from moe.config import require
from moe.data.documents import BLOCK_CHARACTERS, BLOCK_DOCUMENTS, held_out, stable_hash
from moe.data.errors import DataError
from moe.data.formats.text_files import check_text, decode_text, open_bytes, read_bytes, read_line, text_suffix
from moe.data.source import SPLITS, SourceConfig, TextSource
from moe.data.vocabulary import Vocabulary

WHOLE_FILE = 256 * 1024  # bytes: a plain file up to this size is one document
PIECE = 32 * 1024  # bytes: a larger one is cut at the first blank line after this many
_JSON_LINES = (".jsonl", ".ndjson")


@dataclasses.dataclass(frozen=True)
class TextConfig(SourceConfig, name="text"):
  """Text files.

  Attributes:
    path: glob of the files.
    validation_path: glob of validation files; if empty, a fraction of the documents of `path` is held out.
    validation_fraction: of the documents.
    text_key: the field of JSON lines that has the text.
  """

  path: str
  validation_path: str = ""
  validation_fraction: float = 0.05
  text_key: str = "text"

  def __post_init__(self):
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
    ConfigError: the glob matches nothing. DataError: a file cannot be read, is empty, damaged, binary or not UTF-8.
  """

  def __init__(self, vocabulary: Vocabulary, config: TextConfig, split: str):
    super().__init__(vocabulary)
    self._config, self._split = config, split
    self._own_files = bool(config.validation_path)
    field = "validation_path" if self._own_files and split == "validation" else "path"
    pattern = getattr(config, field)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    require(bool(paths), field, pattern, "expected to match at least one file")
    for path in paths:
      check_text(path)
    # Names relative to the part of the glob without wildcards: the same wherever the corpus is.
    self._root = _fixed_part(pattern)
    self._shards = list(_shards(paths))
    self.num_shards = len(self._shards)
    names = ((self._name(path), os.path.getsize(path)) for path in paths)
    self.fingerprint = f"{stable_hash(split, config.validation_fraction, *names):016x}"

  def texts(self, shard: int) -> Iterator[str]:
    for path in self._shards[shard]:
      documents = _json_lines(path, self._config.text_key) if _is_json_lines(path) else _plain(path)
      for number, (text, split) in enumerate(documents):
        if self._chosen(path, number, split):
          yield text

  def _name(self, path: str) -> str:
    return os.path.relpath(path, self._root).replace(os.sep, "/")

  def _chosen(self, path: str, number: int, split: str | None) -> bool:
    if split is not None:
      return split == self._split
    if self._own_files or self._split not in SPLITS:
      return True
    return held_out(self._name(path), number, self._config.validation_fraction) == (self._split == "validation")


def _fixed_part(pattern: str) -> str:
  directory = os.path.dirname(pattern)
  while glob.has_magic(directory):
    directory = os.path.dirname(directory)
  return directory or "."


def _shards(paths: list[str]) -> Iterator[list[str]]:
  """Each JSON-lines file alone; plain files, in order, grouped to about a block."""
  plain, size = [], 0
  for path in paths:
    if _is_json_lines(path):
      yield [path]
      continue
    plain.append(path)
    size += os.path.getsize(path)
    if len(plain) == BLOCK_DOCUMENTS or size >= BLOCK_CHARACTERS:
      yield plain
      plain, size = [], 0
  if plain:
    yield plain


def _is_json_lines(path: str) -> bool:
  return text_suffix(path) in _JSON_LINES


def _json_lines(path: str, text_key: str) -> Iterator[tuple[str, str | None]]:
  """The text, and the split or None, of each line that is not blank."""
  with open_bytes(path) as file:
    number = offset = 0
    while line := read_line(file, path):
      number += 1
      if line.strip():
        yield _record(decode_text(line, path, offset), f"{path}, line {number}", text_key)
      offset += len(line)


def _record(line: str, where: str, text_key: str) -> tuple[str, str | None]:
  try:
    record = json.loads(line.removeprefix("\ufeff"))
  except json.JSONDecodeError as error:
    raise DataError(where, f"is not JSON ({error.msg})") from None
  if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
    raise DataError(where, f"has no text field {text_key!r}")
  split = record.get("split")
  return record[text_key], None if split is None else str(split)


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
