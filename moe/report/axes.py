"""Scales of a chart: from numbers to places, and the ticks that say which."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
  """One axis.

  Attributes:
    label: what is drawn along it, with its unit.
    low, high: the numbers at its ends.
    ticks: places and their texts.
    log: whether equal ratios are equal distances.
  """

  label: str
  low: float
  high: float
  ticks: tuple[tuple[float, str], ...]
  log: bool = False

  def place(self, value: float) -> float:
    """Where a value lies between the ends: 0 at `low`, 1 at `high`."""
    low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
    return (value - low) / (high - low)


def linear(label: str, values: Iterable[float], *, low: float | None = None, high: float | None = None) -> Axis:
  """An axis that holds all finite `values`; ends that are not given are the next ticks beyond them."""
  found = [value for value in values if math.isfinite(value)] or [0.0]
  first = min(found) if low is None else low
  last = max(found) if high is None else high
  if last <= first:
    last = first + (abs(first) or 1.0)
  step = nice_step(last - first)
  first = math.floor(first / step + 1e-9) * step if low is None else low
  last = math.ceil(last / step - 1e-9) * step if high is None else high
  return Axis(label, first, last, _ticks(first, last, step))


def logarithmic(label: str, values: Iterable[float]) -> Axis:
  """A logarithmic axis just around the positive ones of `values`."""
  found = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
  low, high = min(found) * 0.95, max(found) * 1.05
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  round_numbers = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
  ticks = tuple((value, number(value)) for value in round_numbers if low <= value <= high)
  if len(ticks) < 3:
    ticks = _ticks(low, high, nice_step(high - low))
  return Axis(label, low, high, ticks, log=True)


def bins(label: str, names: Sequence[str], most: int) -> Axis:
  """An axis of equal cells 0, 1, ..., of which about `most` are named, in their middles."""
  every = max(1, math.ceil(len(names) / most))
  ticks = tuple((i + 0.5, names[i]) for i in range(0, len(names), every))
  return Axis(label, 0, len(names), ticks)


def nice_step(width: float) -> float:
  """The largest of 1, 2 and 5 times a power of ten that parts `width` into at least four."""
  power = 10.0 ** math.floor(math.log10(width / 4))
  return max(digit * power for digit in (1, 2, 5) if digit * power <= width / 4 * (1 + 1e-9))


def number(value: float) -> str:
  """A number as people write it: up to four digits, thousands apart."""
  if value == 0 or not math.isfinite(value):
    return f"{value:g}"
  digits = max(0, 3 - math.floor(math.log10(abs(value))))
  text = f"{value:,.{digits}f}"
  return text.rstrip("0").rstrip(".") if "." in text else text


def _ticks(low: float, high: float, step: float) -> tuple[tuple[float, str], ...]:
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return tuple((float(i * step), number(float(np.round(i * step, 12)))) for i in range(first, last + 1))
