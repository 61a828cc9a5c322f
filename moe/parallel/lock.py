"""One writer per folder: a lock that is free again when its process has died, however it died."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from moe.files import AnyPath, in_bucket, os_errors, read_bytes, write_whole

# Seconds between signs of life, and how long to wait for one from another machine.
BEAT, PATIENCE = 10.0, 35.0
# Seconds after which an object that two processes wrote in the same moment is that of the later one.
SETTLED = 1.0


class LockedError(RuntimeError):
  """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def lock(path: AnyPath) -> Iterator[None]:
  """Holds the lock file `path` within the block, and removes it at the end.

  The kernel's lock on it (`flock`) ends with its process. Where the file system has none, or keeps it within one
  machine, the file says who holds it: a process of this machine is looked up, and one of another machine counts as
  alive while it renews the file, which takes `PATIENCE` seconds to find out.

  A bucket has no locks at all, only such an object. Of two processes that begin at once, the one that wrote first finds
  the other's name and gives way; both go on only if one took longer than `SETTLED` seconds to write.

  Raises:
    LockedError: a living process holds it.
    OSError: the file cannot be written.
  """
  file = _Object(path) if in_bucket(path) else _File(path)
  left = threading.Event()
  try:
    _check_owner(path, file.by_kernel)
    started = _started(os.getpid())
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": started, "since": time.ctime()}
    file.write(mine | {"beat": 0})
    beating = threading.Thread(target=_beat, args=(file, mine, left), name="moe-lock", daemon=True)
    beating.start()
  except BaseException:
    file.close()
    raise
  try:
    yield
  finally:
    left.set()
    beating.join()
    if file.is_ours():
      with contextlib.suppress(OSError), os_errors(path):
        path.unlink()
    file.close()


class _File:
  """An opened lock file; `by_kernel` is whether the kernel has locked it.

  Raises:
    LockedError: the kernel has locked it for another process.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._opened, self.by_kernel = _take(path)

  def write(self, owner: dict[str, Any]) -> None:
    content = json.dumps(owner).encode()
    os.pwrite(self._opened, content, 0)
    os.ftruncate(self._opened, len(content))
    os.fsync(self._opened)

  def is_ours(self) -> bool:
    """Whether the path still leads to this file: its next owner may have removed it."""
    return _is_same(self._opened, self._path)

  def close(self) -> None:
    os.close(self._opened)


class _Object:
  """A lock object in a bucket.

  Raises:
    LockedError: of `write`, another process wrote in the same moment.
  """

  by_kernel = False

  def __init__(self, path: AnyPath):
    self._path = path
    self._written: dict[str, Any] = {}

  def write(self, owner: dict[str, Any]) -> None:
    first = not self._written
    if not first and not self.is_ours():
      return  # the others took this process for dead
    self._written = owner
    write_whole(self._path, json.dumps(owner))
    if first:
      time.sleep(SETTLED)
      if not self.is_ours():
        raise LockedError(_describe(_read(self._path)))

  def is_ours(self) -> bool:
    """Whether it says what was written last, and nobody has written since."""
    return _read(self._path) == self._written

  def close(self) -> None:
    pass


def _take(path: pathlib.Path) -> tuple[int, bool]:
  """The opened file, and whether the kernel has locked it; it may have been removed by its last owner meanwhile."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(file)
      raise LockedError(_describe(_read(path))) from None
    except OSError:
      return file, False  # the file system has no locks
    if _is_same(file, path):
      return file, True
    os.close(file)


def _check_owner(path: AnyPath, by_kernel: bool) -> None:
  """Raises `LockedError` if the process that the file names is alive, where the kernel's lock cannot tell."""
  owner = _read(path)
  if not owner:
    return
  if owner.get("host") == socket.gethostname():
    if not by_kernel and _is_alive(owner):
      raise LockedError(_describe(owner))
    return
  print(f"waiting up to {PATIENCE:.0f} s for a sign of life of {_describe(owner)}", flush=True)
  end = time.monotonic() + PATIENCE
  while time.monotonic() < end:
    time.sleep(min(1.0, PATIENCE / 10))
    if _read(path) not in (owner, {}):
      raise LockedError(_describe(owner))


def _beat(file: _File | _Object, mine: dict[str, Any], left: threading.Event) -> None:
  number = 0
  while not left.wait(BEAT):
    number += 1
    with contextlib.suppress(OSError):  # a full disk
      file.write(mine | {"beat": number})


def _read(path: AnyPath) -> dict[str, Any]:
  """Who holds the lock; {} if unknown. Opens the file again, as network file systems look for changes only then."""
  try:
    found = json.loads(read_bytes(path))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _is_same(file: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except OSError:
    return False


def _is_alive(owner: dict[str, Any]) -> bool:
  """Whether a process of this machine is there: of the same start, so that another with its number is not taken for it.

  A system without /proc, such as macOS, says no start: there any process of this number counts.
  """
  pid, started = owner.get("pid"), owner.get("process_started")
  if started is not None:
    return started == _started(pid)
  try:
    os.kill(pid, 0)
  except PermissionError:  # another user's
    return True
  except (OSError, OverflowError, TypeError):
    return False
  return True


def _started(pid: int) -> str | None:
  """When a process of this machine began, in the kernel's clock; None if there is none of this number."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
  except (OSError, IndexError):
    return None


def _describe(owner: dict[str, Any]) -> str:
  if not owner:
    return "another process"
  return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
