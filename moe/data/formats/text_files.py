"""Text files, compressed or not: opening them, and rejecting what is not text before anything expensive starts."""

import codecs
import importlib
import io
import os
import re
from typing import Any, BinaryIO

from moe.data.errors import DataError

_SNIFFED = 64 * 1024
# The suffix of each compression, and the modules that read it, any of which will do.
_COMPRESSED = {
  ".gz": ("gzip",),
  ".bz2": ("bz2",),
  ".xz": ("lzma",),
  ".lzma": ("lzma",),
  ".zst": ("compression.zstd", "zstandard"),
}
# Tables, archives, other compressions and other files that hold records or text, but are neither when read as text.
_REFUSED = re.compile(
  r"\.(csv|tsv|xlsx?|parquet|arrow|feather|avro|orc|tfrecord|np[yz]|h5|pkl|pt|sqlite|db|pdf|docx|epub"
  r"|zip|tar|tgz|tbz2?|txz|7z|rar|lz4|br|z|zstd)"
)
_EXPECTED = "expected plain text or JSON lines (.jsonl, .ndjson, .json), as they are or as .gz, .bz2, .xz or .zst"


def text_suffix(path: str) -> str:
  """The suffix in lower case, without that of a compression: ".txt" of "a.TXT.gz"."""
  stem, suffix = os.path.splitext(path.lower())
  return os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix


def open_bytes(path: str) -> BinaryIO:
  """Opens the file for reading, decompressed according to its suffix.

  Raises:
    DataError: the file cannot be opened, or no installed module reads its compression.
  """
  suffix = os.path.splitext(path.lower())[1]
  try:
    if suffix not in _COMPRESSED:
      return open(path, "rb")
    module = _import_any(_COMPRESSED[suffix], path, suffix)
    if module.__name__ != "zstandard":
      return module.open(path, "rb")
    # Its own `open` ends after the first frame of several, and gives no lines.
    file = open(path, "rb")  # noqa: SIM115, closed with the reader
    reader = module.ZstdDecompressor(max_window_size=2**31).stream_reader(file, read_across_frames=True)
    return io.BufferedReader(reader)
  except OSError as error:
    raise DataError(path, f"cannot be read ({error.strerror or error})") from None


def _import_any(modules: tuple[str, ...], path: str, suffix: str) -> Any:
  for module in modules:
    try:
      return importlib.import_module(module)
    except ImportError:
      continue
  how = "the package zstandard (pip install zstandard)" if suffix == ".zst" else f"a Python with {modules[0]}"
  raise DataError(path, f"reading {suffix} needs {how}")


def read_bytes(file: BinaryIO, size: int, path: str) -> bytes:
  """`file.read(size)`, with a `DataError` that names a damaged file."""
  try:
    return file.read(size)
  except Exception as error:  # each decompressor has errors of its own
    raise DataError(path, f"is damaged ({error})") from None


def read_line(file: BinaryIO, size: int, path: str) -> bytes:
  """`file.readline(size)`, with a `DataError` that names a damaged file."""
  try:
    return file.readline(size)
  except Exception as error:  # each decompressor has errors of its own
    raise DataError(path, f"is damaged ({error})") from None


def decode_text(content: bytes, path: str, offset: int = 0) -> str:
  """The text of UTF-8 bytes that begin at byte `offset` of the file.

  Raises:
    DataError: the bytes contain NUL, so the file is binary, or are not UTF-8.
  """
  if b"\0" in content:
    raise DataError(path, f"is a binary file (NUL at byte {offset + content.index(0)}): {_EXPECTED}")
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    raise DataError(path, f"is not UTF-8 (byte {offset + error.start}): {_EXPECTED}") from None


def read_start(path: str) -> bytes:
  """The first 64 KiB of a file.

  Raises:
    DataError: the file cannot be read, is empty or damaged, or its suffix says that it is no text.
  """
  if _REFUSED.fullmatch(text_suffix(path)):
    raise DataError(path, f"is not text: {_EXPECTED}")
  with open_bytes(path) as file:
    start = read_bytes(file, _SNIFFED, path)
  if len(start) < _SNIFFED and not start.strip(b"\xef\xbb\xbf \t\r\n"):
    raise DataError(path, "is empty")
  return start


def check_text(start: bytes, path: str) -> None:
  """Raises `DataError` if what `read_start` found is binary or not UTF-8."""
  if b"\0" in start:
    decode_text(start, path)
  try:
    # Incremental, because the 64 KiB may end inside a character.
    codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < _SNIFFED)
  except UnicodeDecodeError as error:
    raise DataError(path, f"is not UTF-8 (byte {error.start}): {_EXPECTED}") from None
