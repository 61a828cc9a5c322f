"""Importing TensorFlow in silence."""

import contextlib
import os
import signal

import pytest

from moe.data.quiet_import import quiet_import


@pytest.mark.parametrize(("level", "said"), [(None, ""), ("1", ""), ("3", ""), ("0", "a page of a log\n")])
def test_what_is_written_to_stderr_is_discarded_unless_the_log_is_asked_for(capfd, monkeypatch, level, said):
  """JAX itself asks for level 1 when it is imported."""
  if level is None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
  else:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
  with quiet_import():
    os.write(2, b"a page of a log\n")
  os.write(2, b"an error\n")
  assert capfd.readouterr().err == f"{said}an error\n"


@pytest.fixture
def interruptible():
  """Ctrl-C as a shell's foreground has it; what runs in the background may ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_that_an_import_swallows_is_not_lost(interruptible):
  done = []
  with pytest.raises(KeyboardInterrupt), quiet_import():
    with contextlib.suppress(BaseException):
      signal.raise_signal(signal.SIGINT)
    done.append("imported")
  assert done == ["imported"]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
