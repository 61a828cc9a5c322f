"""Paths that users give, and files that are written whole or not at all; on a disk, or in a bucket.

A bucket (`gs://`, `s3://`) has objects and no folders: a folder is there while an object's name begins with its own. An
object appears whole when its writing ends, replaces an older one in one step, and cannot be appended to.
"""

import contextlib
import errno
import functools
import importlib.util
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias, Union

from moe.config import ConfigError, first_line, require

if TYPE_CHECKING:
  from etils import epath

AnyPath: TypeAlias = Union[pathlib.Path, "epath.Path"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # what fsspec reads and writes the buckets of each scheme with

# Otherwise etils takes TensorFlow for every bucket: seconds to import, and no s3://. It asks only once in a process.
if any(map(importlib.util.find_spec, _PACKAGES.values())):
  os.environ.setdefault("EPATH_USE_TF", "false")


def local_path(flag: str, given: str | os.PathLike[str]) -> pathlib.Path:
  """The absolute path of what was given as `flag`; `~` is the home folder.

  Raises:
    ConfigError: it is empty or a URL, or names no home folder.
  """
  text = os.fspath(given)
  require(bool(text.strip()), flag, text, "expected a path")
  mount = "expected a path; mount the bucket as a folder (with gcsfuse, say) and give that"
  require(not _URL.match(text), flag, text, mount)
  try:
    path = pathlib.Path(text).expanduser().absolute()
  except RuntimeError:
    raise ConfigError(flag, text, "expected a path; there is no such home folder") from None
  return path.resolve() if ".." in path.parts else path


def open_path(flag: str, given: str | os.PathLike[str]) -> AnyPath:
  """The path of what was given as `flag`: one in a bucket, or else a `local_path`.

  Nothing is asked of the bucket yet.

  Raises:
    ConfigError: as `local_path`; or it names no bucket, or one of a scheme whose package is not installed.
  """
  text = os.fspath(given)
  scheme, _, rest = text.partition("://")
  if scheme not in _PACKAGES:
    return local_path(flag, text)
  bucket, *parts = rest.split("/")
  require(bool(bucket) and ".." not in parts, flag, text, f"expected {scheme}://BUCKET/PATH, without '..'")
  package = _PACKAGES[scheme]
  require(_prepare(scheme), flag, text, f"expected the package {package} to be installed, which {scheme}:// needs")
  from etils import epath

  return epath.Path(text)


@functools.cache
def _prepare(scheme: str) -> bool:
  """Whether buckets of this scheme can be reached."""
  import fsspec

  try:
    protocols = fsspec.get_filesystem_class(scheme).protocol
  except ImportError:
    return False
  for protocol in [protocols] if isinstance(protocols, str) else protocols:
    # Other hosts write too, and so does TensorStore on this one: a remembered listing would hide their objects.
    fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
  return True


def in_bucket(path: AnyPath) -> bool:
  """Whether a path is in a bucket, not on a disk."""
  return not isinstance(path, pathlib.Path)


@contextlib.contextmanager
def os_errors(path: AnyPath) -> Iterator[None]:
  """Makes every error of a bucket an `OSError` with `strerror`; those of a disk are."""
  try:
    yield
  except Exception as error:
    if not in_bucket(path) or (isinstance(error, OSError) and error.strerror):
      raise
    if isinstance(error, FileNotFoundError):
      raise OSError(errno.ENOENT, "no such object or bucket", str(path)) from error
    code = errno.EEXIST if isinstance(error, FileExistsError) else errno.EIO
    raise OSError(code, first_line(error)[:200], str(path)) from error


def size_of(path: AnyPath) -> int:
  """The bytes of a file. Raises `OSError`."""
  with os_errors(path):
    found = path.stat()
    return found.st_size if isinstance(found, os.stat_result) else found.length


def read_bytes(path: AnyPath, start: int = 0, size: int = -1) -> bytes:
  """The bytes of a file from `start` on, at most `size` unless that is -1. Raises `OSError`."""
  with os_errors(path), path.open("rb") as file:
    file.seek(start)
    return file.read(size)


def write_whole(path: AnyPath, content: str | bytes) -> None:
  """Writes a file, or replaces it in one step: a kill leaves the old content or the new. Raises `OSError`."""
  data = content.encode() if isinstance(content, str) else content
  if in_bucket(path):
    with os_errors(path):
      path.write_bytes(data)
    return
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    part.write_bytes(data)
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


def write_new(path: AnyPath, text: str) -> None:
  """Writes a file that does not exist yet (else FileExistsError).

  An empty file reserves the name first, since not every file system has hard links. A bucket is looked at before: of
  two who write the same name in one moment, the later one stays.
  """
  if in_bucket(path):
    with os_errors(path):
      if path.exists():
        raise FileExistsError(path)
    write_whole(path, text)
    return
  path.open("x").close()
  try:
    write_whole(path, text)
  except BaseException:
    with contextlib.suppress(OSError):
      path.unlink()
    raise


def write_numbered(path: AnyPath, text: str) -> AnyPath:
  """Writes a new file of this name, or of the first free one with a number behind it, and returns its path.

  The folder is made if it is missing. Raises `OSError`.
  """
  number, free = 1, path
  make_folder(path.parent)
  with os_errors(path):
    while free.exists():
      number += 1
      free = path.with_name(f"{path.stem}-{number}{path.suffix}")
  write_new(free, text)
  return free


class Appended:
  """A file that bytes are appended to; it is made if it is missing.

  An object cannot be appended to. So all of it is kept in memory and written whole: when it is synced or closed, and
  when it is flushed, but then only once in `PERIOD` seconds, since a bucket takes about one write of a name per second.

  Raises:
    OSError: it cannot be read or written; so do all methods.
  """

  PERIOD = 30.0

  def __init__(self, path: AnyPath):
    self._path, self._file = path, None if in_bucket(path) else path.open("ab")
    if self._file is None:
      self._content, self._new, self._written = bytearray(), True, time.monotonic()
      with contextlib.suppress(FileNotFoundError):
        self._content += read_bytes(path)

  def write(self, data: bytes) -> None:
    if self._file is not None:
      self._file.write(data)
    else:
      self._content += data
      self._new = True

  def flush(self) -> None:
    if self._file is not None:
      self._file.flush()
    elif time.monotonic() - self._written >= self.PERIOD:
      self.sync()

  def sync(self) -> None:
    """What was written is now where others read it."""
    if self._file is not None:
      self._file.flush()
    elif self._new:
      write_whole(self._path, bytes(self._content))
      self._new, self._written = False, time.monotonic()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    else:
      self.sync()


def move(path: AnyPath, target: AnyPath) -> None:
  """Renames a file or a folder. In a bucket each object is copied and then removed, so that a kill loses none."""
  if not in_bucket(path):
    path.rename(target)
    return
  with os_errors(path):
    if path.is_dir():
      for inner in list(path.iterdir()):
        move(inner, target / inner.name)
    else:
      write_whole(target, read_bytes(path))
      path.unlink()


def make_folder(path: AnyPath) -> None:
  """Makes a folder and those around it, where there are any. Raises `OSError`."""
  if not in_bucket(path):  # gcsfs would try to make a missing bucket
    path.mkdir(parents=True, exist_ok=True)
