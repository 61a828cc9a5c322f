"""Requests to stop a run: SIGTERM, which clusters send, and Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_ASKED = b"\nstopping after this step, and saving; once more ends at once, without saving\n"


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step: whether to stop after it. A second signal ends the process at once.

  On several hosts JAX's preemption service listens, so that all stop after the same step.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  asked: list[int] = []
  before: dict[signal.Signals, Any] = {}

  def handle(number: int, frame: Any) -> None:
    asked.append(number)
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):
      os.write(2, _ASKED)  # not print, which may be what the signal has interrupted

  for number in (signal.SIGTERM, signal.SIGINT):
    # Only the main thread can install handlers; in another one (a notebook's worker) the run ignores signals.
    with contextlib.suppress(ValueError):
      before[number] = signal.signal(number, handle)
  try:
    yield lambda step: bool(asked)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
