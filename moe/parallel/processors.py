"""The processor cores that this process may use."""

import os


def processors() -> list[int | None]:
  """Their numbers; None for each where the system does not tell, as on macOS, or bind a process to some."""
  if hasattr(os, "sched_getaffinity"):
    return [*sorted(os.sched_getaffinity(0))]
  return [None] * (os.cpu_count() or 1)
