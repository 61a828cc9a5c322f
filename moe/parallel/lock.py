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

# Seconds between signs of life, and how long to wait for one from another machine.
BEAT, PATIENCE = 10.0, 35.0


class LockedError(RuntimeError):
  """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock file `path` within the block, and removes it at the end.

  The kernel's lock on it (`flock`) ends with its process. Where the file system has none, or keeps it within one
  machine, the file says who holds it: a process of this machine is looked up, and one of another machine counts as
  alive while it renews the file, which takes `PATIENCE` seconds to find out.

  Raises:
    LockedError: a living process holds it.
    OSError: the file cannot be written.
  """
  file, by_kernel = _take(path)
  left = threading.Event()
  try:
    _check_owner(path, by_kernel)
    started = _started(os.getpid())
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": started, "since": time.ctime()}
    _write(file, mine | {"beat": 0})
    beating = threading.Thread(target=_beat, args=(file, mine, left), name="moe-lock", daemon=True)
    beating.start()
  except BaseException:
    os.close(file)
    raise
  try:
    yield
  finally:
    left.set()
    beating.join()
    if _is_same(file, path):
      with contextlib.suppress(OSError):
        path.unlink()
    os.close(file)


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


def _check_owner(path: pathlib.Path, by_kernel: bool) -> None:
  """Raises `LockedError` if the process that the file names is alive, where the kernel's lock cannot tell."""
  owner = _read(path)
  if not owner:
    return
  if owner.get("host") == socket.gethostname():
    if not by_kernel and owner.get("process_started") == _started(owner.get("pid", 0)):
      raise LockedError(_describe(owner))
    return
  print(f"waiting up to {PATIENCE:.0f} s for a sign of life of {_describe(owner)}", flush=True)
  end = time.monotonic() + PATIENCE
  while time.monotonic() < end:
    time.sleep(min(1.0, PATIENCE / 10))
    if _read(path) not in (owner, {}):
      raise LockedError(_describe(owner))


def _beat(file: int, mine: dict[str, Any], left: threading.Event) -> None:
  number = 0
  while not left.wait(BEAT):
    number += 1
    with contextlib.suppress(OSError):  # a full disk
      _write(file, mine | {"beat": number})


def _write(file: int, owner: dict[str, Any]) -> None:
  content = json.dumps(owner).encode()
  os.pwrite(file, content, 0)
  os.ftruncate(file, len(content))
  os.fsync(file)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Who holds the lock; {} if unknown. Opens the file again, as network file systems look for changes only then."""
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _is_same(file: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except OSError:
    return False


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
