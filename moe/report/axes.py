"""Axes of a chart: how far along an axis a value lies, and which ticks label it."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

Ticks = tuple[tuple[float, str], ...]


@dataclasses.dataclass(frozen=True)
class Axis:
  """One axis.

  Attributes:
    label: the quantity and its unit.
    low, high: the values at its ends.
    ticks: values and their texts.
    log: whether the scale is logarithmic.
  """

  label: str
  low: float
  high: float
  ticks: Ticks
  log: bool = False

  def fraction(self, value: float) -> float:
    """How far along the axis a value lies: 0 at `low`, 1 at `high`."""
    low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
    return (value - low) / (high - low)


def linear_axis(label: str, values: Iterable[float], *, low: float | None = None, high: float | None = None) -> Axis:
  """An axis that covers all finite `values`; an end that is not given is the next tick beyond them."""
  found = [value for value in values if math.isfinite(value)] or [0.0]
  first = min(found) if low is None else low
  last = max(found) if high is None else high
  if last <= first:
    last = first + (abs(first) or 1.0)
  step = _tick_step(last - first)
  first = math.floor(first / step + 1e-9) * step if low is None else low
  last = math.ceil(last / step - 1e-9) * step if high is None else high
  return Axis(label, first, last, _ticks(first, last, step))


def logarithmic_axis(label: str, values: Iterable[float]) -> Axis:
  """A logarithmic axis that covers the positive `values`."""
  found = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
  low, high = min(found) * 0.95, max(found) * 1.05
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  round_numbers = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
  ticks = tuple((value, number_text(value)) for value in round_numbers if low <= value <= high)
  if len(ticks) < 3:
    ticks = _ticks(low, high, _tick_step(high - low))
  return Axis(label, low, high, ticks, log=True)


def category_axis(label: str, names: Sequence[str], most_ticks: int) -> Axis:
  """An axis of cells of width 1, from 0; at most `most_ticks` of them, evenly spaced, are labelled in the middle."""
  every = max(1, math.ceil(len(names) / most_ticks))
  ticks = tuple((i + 0.5, names[i]) for i in range(0, len(names), every))
  return Axis(label, 0, len(names), ticks)


def number_text(value: float) -> str:
  """A number with up to four significant digits and a thousands separator."""
  if value == 0 or not math.isfinite(value):
    return f"{value:g}"
  digits = max(0, 3 - math.floor(math.log10(abs(value))))
  text = f"{value:,.{digits}f}"
  return text.rstrip("0").rstrip(".") if "." in text else text


def _tick_step(width: float) -> float:
  """The largest of 1, 2 and 5 times a power of ten that divides `width` into at least four steps."""
  power = 10.0 ** math.floor(math.log10(width / 4))
  return max(digit * power for digit in (1, 2, 5) if digit * power <= width / 4 * (1 + 1e-9))


def _ticks(low: float, high: float, step: float) -> Ticks:
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return tuple((float(i * step), number_text(float(np.round(i * step, 12)))) for i in range(first, last + 1))
