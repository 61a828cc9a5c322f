"""Importing TensorFlow, and what imports it, without pages of its log."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
  """Discards what is written to stderr inside, unless the user has asked for TensorFlow's log.

  A level is not enough: some of TensorFlow's C++ writes there on import, whatever the level.
  """
  if "TF_CPP_MIN_LOG_LEVEL" in os.environ and os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
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
