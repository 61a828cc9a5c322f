"""JSON lines: the text of each record and the split that it names, or what is wrong with the line."""

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

from moe.data.errors import DataError
from moe.data.formats.text_files import open_bytes, read_line, text_suffix

LONGEST_LINE = 2**28  # bytes
_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json")
# A record's text, and the split that it names, if any.
Record = tuple[str, str | None]


def is_json_lines(path: str) -> bool:
  """Whether the file's name says that it holds records."""
  return text_suffix(path) in _SUFFIXES


def check_form(path: str, start: bytes, text_key: str) -> None:
  """Checks, by the beginning of a file, that it holds one record per line if and only if its name says so.

  Raises:
    DataError: it is one JSON value over several lines, or has the records of another name.
  """
  first = start.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
  if is_json_lines(path):
    one = {b"[": ("a JSON list", "'.[]'"), b"{": ("a JSON object over several lines", ".")}
    found = one.get(b"[" if first.startswith(b"[") else first)
    if found:
      raise DataError(path, f"is {found[0]}: expected one record per line, as `jq -c {found[1]}` writes them")
    return
  try:
    record = json.loads(first)
  except (ValueError, RecursionError):
    return
  if isinstance(record, dict) and isinstance(record.get(text_key), str):
    raise DataError(path, "holds JSON lines: expected a name that ends in .jsonl, to be read as records")


def read_records(path: str, text_key: str, bad: Callable[[int, DataError], None]) -> Iterator[Record]:
  """The records of the lines that are not blank.

  Args:
    path: of the file.
    text_key: the field that has the text.
    bad: called with the number of a line that is not such a record, and with the error; raises it, or returns, and the
      line is left out.

  Raises:
    DataError: the file is damaged, or a line is bad and `bad` raises.
  """
  with open_bytes(path) as file:
    number = 0
    while line := read_line(file, LONGEST_LINE, path):
      number += 1
      try:
        record = _parse(line, text_key) if len(line) < LONGEST_LINE else _pass_over(line, file, path)
      except _BadLine as problem:
        bad(number, DataError(f"{path}, line {number}", str(problem)))
        continue
      if record is not None:
        yield record


class _BadLine(ValueError):
  """What is wrong with a line."""


def _pass_over(line: bytes, file: BinaryIO, path: str) -> NoReturn:
  while line and not line.endswith(b"\n"):
    line = read_line(file, LONGEST_LINE, path)
  raise _BadLine(f"has more than {LONGEST_LINE // 2**20} MiB")


def _parse(line: bytes, text_key: str) -> Record | None:
  """The record of a line; None for a blank one."""
  try:
    content = line.decode("utf-8-sig")  # without a byte-order mark
    if not content.strip():
      return None
    record = json.loads(content)
  except UnicodeDecodeError as error:
    raise _BadLine(f"is not UTF-8 (byte {error.start} of the line)") from None
  except json.JSONDecodeError as error:
    raise _BadLine(f"is not JSON ({error.msg})") from None
  except (ValueError, RecursionError) as error:  # a number of too many digits, or too many brackets
    raise _BadLine(f"cannot be read as JSON ({error})") from None
  if not isinstance(record, dict) or text_key not in record:
    raise _BadLine(f"has no text field {text_key!r}")
  if content.count(f'"{text_key}"') > 1:
    json.loads(content, object_pairs_hook=lambda pairs: _require_once(pairs, text_key))
  text, split = record[text_key], record.get("split")
  for name, value in ((text_key, text), ("split", "" if split is None else split)):
    if not isinstance(value, str):
      raise _BadLine(f"has no text in the field {name!r}, but {_name(value)}")
  if "\\u" in content:
    _require_whole_characters(text, text_key)
  return text, split


def _require_once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
  if sum(key == name for key, _ in pairs) > 1:
    raise _BadLine(f"has the field {name!r} twice")
  return dict(pairs)


def _require_whole_characters(text: str, name: str) -> None:
  """JSON can escape half a surrogate pair, which is no character and has no bytes in UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise _BadLine(f"has half a surrogate pair in the field {name!r} (character {error.start})") from None


def _name(value: Any) -> str:
  """A JSON value that is no string, in JSON's words."""
  names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
  return names.get(type(value), "null")
