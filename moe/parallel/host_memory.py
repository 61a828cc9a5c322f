"""Host memory for runs on the CPU: reuse freed memory instead of returning it to the system page by page."""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Makes the allocator reuse large freed blocks, so that every step touches the same pages.

  XLA's CPU backend allocates a program's buffers at every call. glibc maps and unmaps such large blocks each time, and
  the kernel zeroes every page again: a fifth of the time of a Mixture-of-Experts layer. Call it before the first
  computation. The cost is that the process never shrinks below its peak memory, and that its threads share one arena.

  Returns:
    Whether the C library accepted the settings; without glibc, nothing changes.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  # A threshold of -1 means never: even the largest int, 2 GiB, is less than a large program's buffers.
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
  return all([mallopt(option, value) for option, value in settings])
