"""Paths that users give, and files that are written whole or not at all."""

import contextlib
import os
import pathlib
import re

from moe.config import ConfigError, require

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


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


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file, or replaces it in one step: a kill leaves the old content or the new."""
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


def write_new(path: pathlib.Path, text: str) -> None:
  """Writes a file that does not exist yet (else FileExistsError).

  An empty file reserves the name first, since not every file system has hard links.
  """
  path.open("x").close()
  try:
    write_whole(path, text)
  except BaseException:
    with contextlib.suppress(OSError):
      path.unlink()
    raise


def write_numbered(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a new file of this name, or of the first free one with a number behind it, and returns its path.

  The folder is made if it is missing. Raises `OSError`.
  """
  number, free = 1, path
  path.parent.mkdir(parents=True, exist_ok=True)
  while free.exists():
    number += 1
    free = path.with_name(f"{path.stem}-{number}{path.suffix}")
  write_new(free, text)
  return free
