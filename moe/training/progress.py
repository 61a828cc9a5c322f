"""What a person sees of a running training: its speed, on a bar on a terminal, in plain lines anywhere else."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


class Progress:
  """Loss, speed and time left.

  Args:
    start: updates made before; total: updates of the whole run.
    leaks: whether the loss may know the future, which every figure shown then says.
    stream: where to write; a bar if it is a terminal.
  """

  def __init__(self, start: int, total: int, *, leaks: bool = False, stream: TextIO | None = None):
    self._first, self._total, self._began = start + 1, total, time.monotonic()
    self._label = "loss (future leakage)" if leaks else "loss"
    self._stream = stream or sys.stderr
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm(initial=start, total=total, unit="step", file=self._stream, dynamic_ncols=True)

  def step(self, step: int, loss: float, tokens_per_second: float, *, log: bool) -> None:
    """After every step; without a terminal only steps to `log` are shown."""
    if step == self._first:
      self._began = time.monotonic()  # this step was compiled as well; the others will not be
    text = f"{self._label} {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
    elif log:
      self.line(f"step {step}/{self._total}: {text}, {self._left(step)} left")

  def validation(self, step: int, loss: float, bits_per_byte: float) -> None:
    self.line(f"validation at step {step}: {self._label} {loss:.4f}, {bits_per_byte:.4f} bits per byte")

  def line(self, text: str) -> None:
    """A line of its own, above the bar where there is one."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def _left(self, step: int) -> str:
    if step == self._first:
      return "unknown time"
    seconds = (time.monotonic() - self._began) / (step - self._first) * (self._total - step)
    return str(datetime.timedelta(seconds=round(seconds)))


class Clock:
  """Speed since the last record, and the share of its time in which the device waited for input.

  The share is an upper bound: a wait counts whole when the device was found idle at its end.
  """

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    self._began, self._tokens, self._waited = time.monotonic(), 0, 0.0

  def count(self, tokens: int) -> None:
    self._tokens += tokens

  @contextlib.contextmanager
  def waiting(self, idle: Callable[[], bool]):
    began = time.monotonic()
    yield
    if idle():
      self._waited += time.monotonic() - began

  @property
  def tokens_per_second(self) -> float:
    return self._tokens / max(time.monotonic() - self._began, 1e-9)

  @property
  def input_wait(self) -> float:
    return self._waited / max(time.monotonic() - self._began, 1e-9)
