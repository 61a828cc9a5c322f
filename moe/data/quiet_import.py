"""Importing TensorFlow, and what imports it, without pages of its log."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Discards what is written to stderr inside, unless the user has asked for TensorFlow's log
  (`TF_CPP_MIN_LOG_LEVEL=0`).

  A level is not enough: some of TensorFlow's C++ writes there on import, whatever the level. A Ctrl-C takes effect at
  the end, since code that is being imported often swallows it.
  """
  with _interrupted_after(), _discarded():
    yield


@contextlib.contextmanager
def _interrupted_after() -> Iterator[None]:
  """Holds a Ctrl-C back to the end of the block, in the main thread, which is the one that gets it."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  asked: list[int] = []
  before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if asked:
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _discarded() -> Iterator[None]:
  """Discards what is written to stderr, as `quiet_import` says."""
  # JAX sets 1 when it is imported.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "2"):
    yield
    return
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  sys.stderr.flush()
  kept = os.dup(2)
  with open(os.devnull, "wb") as nothing:
    os.dup2(nothing.fileno(), 2)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(kept)
