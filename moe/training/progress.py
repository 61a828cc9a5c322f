"""What a person sees of a run: a progress bar on a terminal, plain lines anywhere else."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TextIO


class Progress:
  """Loss, speed and remaining time.

  Args:
    start: updates made before.
    total: updates of the whole run.
    leaks: the losses that may know the future, "train" or "validation"; never shown without these words.
    stream: where to write, stderr by default; a terminal gets a bar.
  """

  def __init__(self, start: int, total: int, *, leaks: Collection[str] = (), stream: TextIO | None = None):
    self._first, self._total, self._began = start + 1, total, time.monotonic()
    kinds = ("train", "validation")
    self._labels = {kind: "loss (future leakage)" if kind in leaks else "loss" for kind in kinds}
    self._stream = stream or sys.stderr
    self._bar: Any = None  # a `tqdm`
    if self._stream.isatty():
      from tqdm import tqdm

      self._bar = tqdm(initial=start, total=total, unit="step", file=self._stream, dynamic_ncols=True)

  def step(self, step: int, loss: float, tokens_per_second: float, *, log: bool) -> None:
    """Shows a step; without a terminal only if it is to `log`."""
    if step == self._first:
      self._began = time.monotonic()  # leaves out the first step, which includes compilation
    text = f"{self._labels['train']} {loss:.4f}, {tokens_per_second:,.0f} tokens/s"
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
    elif log:
      self.line(f"step {step}/{self._total}: {text}, {self.left(step)} left")

  def validation(self, step: int, values: Mapping[str, float]) -> None:
    """Shows the record of a validation: its loss, and bits per byte of text or the accuracy where there is none."""
    bits = values.get("bits_per_byte")
    text = f"accuracy {values['accuracy']:.4f}" if bits is None else f"{bits:.4f} bits per byte"
    self.line(f"validation at step {step}: {self._labels['validation']} {values['loss']:.4f}, {text}")

  def line(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def left(self, step: int) -> str:
    """The remaining time after a step, as hours, minutes and seconds."""
    if step <= self._first:  # a validation that an earlier attempt left out comes before the first step
      return "unknown time"
    seconds = (time.monotonic() - self._began) / (step - self._first) * (self._total - step)
    return str(datetime.timedelta(seconds=round(seconds)))


class Clock:
  """The speed since the last record, and the share of the time in which the device waited for input.

  The share is an upper bound: a wait counts in full if the device is idle at its end.
  """

  def __init__(self) -> None:
    self.restart()

  def restart(self) -> None:
    """Begins a new measurement."""
    self._began, self._tokens, self._waited = time.monotonic(), 0, 0.0

  def count(self, tokens: int) -> None:
    """Adds the tokens of a step."""
    self._tokens += tokens

  @contextlib.contextmanager
  def waiting(self, idle: Callable[[], bool]) -> Iterator[None]:
    """Measures a wait for input, which counts if the device is `idle` at its end."""
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
