"""Text files, compressed or not: opening them, and rejecting what is not text before anything expensive starts."""

import bz2
import codecs
import gzip
import importlib
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from moe.data.errors import DataError

_SNIFFED = 64 * 1024
_COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def text_suffix(path: str) -> str:
  """The suffix without that of a compression: ".txt" of "a.txt.gz"."""
  stem, suffix = os.path.splitext(path)
  return os.path.splitext(stem)[1] if suffix in (*_COMPRESSED, ".zst") else suffix


def open_bytes(path: str) -> BinaryIO:
  """Opens the file for reading, decompressed according to its suffix.

  Raises:
    DataError: the file cannot be opened, or is .zst and no installed module reads that.
  """
  suffix = os.path.splitext(path)[1]
  try:
    if suffix == ".zst":
      return _open_zstandard(path)
    return _COMPRESSED.get(suffix, open)(path, "rb")
  except OSError as error:
    raise DataError(path, f"cannot be read ({error.strerror or error})") from None


def _open_zstandard(path: str) -> BinaryIO:
  for module in ("compression.zstd", "zstandard"):
    try:
      return importlib.import_module(module).open(path, "rb")
    except ImportError:
      continue
  raise DataError(path, "reading .zst needs the package zstandard (pip install zstandard)")


def read_bytes(file: BinaryIO, size: int, path: str) -> bytes:
  """`file.read(size)`, with a `DataError` that names a damaged file."""
  try:
    return file.read(size)
  except (*_DAMAGED, OSError) as error:
    raise DataError(path, f"is damaged ({error})") from None


def read_line(file: BinaryIO, path: str) -> bytes:
  """`file.readline()`, with a `DataError` that names a damaged file."""
  try:
    return file.readline()
  except (*_DAMAGED, OSError) as error:
    raise DataError(path, f"is damaged ({error})") from None


def decode_text(content: bytes, path: str, offset: int = 0) -> str:
  """The text of UTF-8 bytes that begin at byte `offset` of the file.

  Raises:
    DataError: the bytes contain NUL, so the file is binary, or are not UTF-8.
  """
  if b"\0" in content:
    raise DataError(path, f"is a binary file (NUL at byte {offset + content.index(0)}), not text")
  try:
    return content.decode()
  except UnicodeDecodeError as error:
    raise DataError(path, f"is not UTF-8 (byte {offset + error.start})") from None


def check_text(path: str) -> None:
  """Checks the first 64 KiB of the file.

  Raises:
    DataError: the file cannot be read, is empty, damaged, binary or not UTF-8.
  """
  with open_bytes(path) as file:
    start = read_bytes(file, _SNIFFED, path)
  if len(start) < _SNIFFED and not start.strip(b"\xef\xbb\xbf \t\r\n"):
    raise DataError(path, "is empty")
  if b"\0" in start:
    decode_text(start, path)
  try:
    # Incremental, because the 64 KiB may end inside a character.
    codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < _SNIFFED)
  except UnicodeDecodeError as error:
    raise DataError(path, f"is not UTF-8 (byte {error.start})") from None
