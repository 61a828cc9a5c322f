"""Host memory for runs on the CPU: reuse freed memory instead of returning it to the system page by page."""

import ctypes
import importlib.util
import os
from importlib.metadata import entry_points

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Where JAX has only CPUs, makes the allocator reuse large freed blocks, so that every step touches the same pages.

  XLA's CPU backend allocates a program's buffers at every call. glibc maps and unmaps such large blocks each time, and
  the kernel zeroes every page again: up to a third of a small model's train step. Call it before JAX starts: a thread
  keeps the arena that it has, and JAX's threads, begun before, would return their memory all the same. The cost is that
  the process never shrinks below its peak memory, and that its threads share one arena.

  Returns:
    Whether the C library accepted the settings. With accelerators or without glibc, nothing changes.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  if not _has_only_cpus():
    return False
  # A threshold of -1 means never: even the largest int, 2 GiB, is less than a large program's buffers.
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
  return all([mallopt(option, value) for option, value in settings])


def _has_only_cpus() -> bool:
  """Whether JAX cannot but run on CPUs: it is told to, or no other platform is installed. Does not start it."""
  if asked := os.environ.get("JAX_PLATFORMS"):
    return asked == "cpu"
  others = importlib.util.find_spec("jax_plugins") or importlib.util.find_spec("libtpu")
  return others is None and not entry_points(group="jax_plugins")
