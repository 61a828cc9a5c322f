"""Host memory for runs on the CPU: keep what is freed instead of giving it back to the system page by page."""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Makes the allocator reuse large freed blocks, so that every step touches the same pages.

  XLA's CPU backend allocates a program's buffers anew at every call. glibc maps and unmaps blocks that large each time,
  and the kernel then zeroes every page again: a fifth of the time of a Mixture-of-Experts layer. Call it before the
  first computation. The price is that the process keeps its high-water mark, and that its threads share one arena.

  Returns:
    Whether the C library took the settings; where it is another than glibc nothing changes.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  # A threshold of -1 means never: the largest that fits into an int, 2 GiB, is less than a large program's buffers.
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
  return all([mallopt(option, value) for option, value in settings])
