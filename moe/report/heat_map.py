"""Heat maps of multiples: how many times what an even or an independent routing would give."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe.report.axes import Axis, bins
from moe.report.html import Html, join, tag
from moe.report.svg import HEIGHT, Plot

# Blue is less, orange is more: told apart by every kind of colour vision. Almost nothing at all is black.
_LESS, _EVEN, _MORE, _NONE = (33, 102, 172), (247, 247, 247), (179, 88, 6), "#1d2530"
_STEPS = 8  # levels on either side of 1, which end at a quarter and at four times
_NONE_BELOW = 1 / 20
_COLUMNS_WITH_TEXT = 10
_ROW_OF_TEXT = 24  # pixels
_MOST_HEIGHT = 520


def heat_map(
  title: str,
  multiples: np.ndarray,
  x: Axis,
  row_label: str,
  *,
  texts: Sequence[Sequence[str]] | None = None,
  rows: Sequence[str] | None = None,
) -> Html:
  """A map of `multiples [rows, columns]`; NaN is blank.

  Args:
    title: of the chart.
    multiples: at least 0.
    x: of the columns (`bins`).
    row_label: of the axis at the left, whose rows are numbered unless `rows` names them.
    texts: what stands in each cell, where there are few enough columns to read it.
    rows: names of the rows.
  """
  count, columns = multiples.shape
  names = rows or [str(row) for row in range(count)]
  y = bins(row_label, names, 17)
  # The first row is at the top.
  legible = texts is not None and columns <= _COLUMNS_WITH_TEXT
  height = 76 + count * _ROW_OF_TEXT if legible else min(76 + 12 * count, _MOST_HEIGHT)
  plot = Plot(title, x, dataclasses.replace(y, low=y.high, high=y.low), height=max(HEIGHT, height), grid=False)
  plot.cells([[color(value) for value in row] for row in multiples])
  if legible:
    for row, column in np.ndindex(*multiples.shape):
      plot.text(column, row, texts[row][column], light=_is_dark(multiples[row, column]))
  return plot.markup()


def color(multiple: float) -> str | None:
  """The colour of a multiple; None for NaN."""
  if math.isnan(multiple):
    return None
  if multiple < _NONE_BELOW:
    return _NONE
  level = _level(multiple) / _STEPS
  end = _MORE if level > 0 else _LESS
  return "#" + "".join(f"{round(even + abs(level) * (far - even)):02x}" for even, far in zip(_EVEN, end))


def scale(none: str, even: str) -> Html:
  """The legend of the colours; `none` and `even` say what nothing and 1 mean."""
  steps = [(0.0, f"{none} (below 1/20)"), (0.25, "≤ ¼"), (0.5, "½"), (1.0, f"1: {even}"), (2.0, "2"), (4.0, "≥ 4")]
  return join(tag("span", _swatch(multiple), text, class_="key") for multiple, text in steps)


def _swatch(multiple: float) -> Html:
  return tag("span", class_="swatch", style=f"background:{color(multiple)}")


def _level(multiple: float) -> int:
  return max(-_STEPS, min(_STEPS, round(math.log2(multiple) * _STEPS / 2)))


def _is_dark(multiple: float) -> bool:
  return multiple < _NONE_BELOW or (not math.isnan(multiple) and abs(_level(multiple)) > _STEPS * 0.6)
