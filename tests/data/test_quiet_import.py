"""Importing TensorFlow in silence."""

import contextlib
import os
import signal

import pytest

from moe.data.quiet_import import quiet_import


def test_what_is_written_to_stderr_is_discarded(capfd):
  with quiet_import():
    os.write(2, b"a page of a log\n")
  os.write(2, b"an error\n")
  assert capfd.readouterr().err == "an error\n"


def test_a_ctrl_c_that_an_import_swallows_is_not_lost():
  done = []
  with pytest.raises(KeyboardInterrupt), quiet_import():
    with contextlib.suppress(BaseException):
      signal.raise_signal(signal.SIGINT)
    done.append("imported")
  assert done == ["imported"]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
