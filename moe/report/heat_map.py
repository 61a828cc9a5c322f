"""Heat maps of multiples: how many times the value that an even or an independent routing would give."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe.report.axes import Axis, category_axis
from moe.report.chart import HEIGHT, Chart
from moe.report.section import Key

# Blue is less and orange is more, which every kind of color vision can tell apart; (almost) nothing is black.
_LESS, _EVEN, _MORE, _NONE = (33, 102, 172), (247, 247, 247), (179, 88, 6), "#1d2530"
_LEVELS = 8  # on either side of 1; the last ones are a quarter and four
_NONE_BELOW = 1 / 20
_MOST_COLUMNS_WITH_TEXT = 10
_ROW_HEIGHT, _TEXT_ROW_HEIGHT, _MOST_HEIGHT = 12, 24, 520  # pixels


def heat_map(
  title: str,
  multiples: np.ndarray,
  x: Axis,
  row_label: str,
  *,
  texts: Sequence[Sequence[str]] | None = None,
  row_names: Sequence[str] | None = None,
) -> Chart:
  """A map of `multiples [rows, columns]`, the first row at the top; NaN is blank.

  Args:
    title: of the chart.
    multiples: at least 0.
    x: the axis of the columns, a `category_axis`.
    row_label: the label of the axis of the rows.
    texts: of the cells, shown where there are few enough columns to read them.
    row_names: the rows' numbers by default.
  """
  rows, columns = multiples.shape
  legible = texts is not None and columns <= _MOST_COLUMNS_WITH_TEXT
  height = 76 + rows * _TEXT_ROW_HEIGHT if legible else min(76 + rows * _ROW_HEIGHT, _MOST_HEIGHT)
  y = category_axis(row_label, row_names or [str(row) for row in range(rows)], 17)
  chart = Chart(title, x, dataclasses.replace(y, low=y.high, high=y.low), max(HEIGHT, height), grid=False)
  chart.cells([[multiple_color(value) for value in row] for row in multiples])
  if legible:
    for row, column in np.ndindex(*multiples.shape):
      chart.cell_text(column, row, texts[row][column], light=_is_dark(float(multiples[row, column])))
  return chart


def multiple_color(multiple: float) -> str | None:
  """The color of a multiple; None for NaN."""
  if math.isnan(multiple):
    return None
  if multiple < _NONE_BELOW:
    return _NONE
  level = _level(multiple) / _LEVELS
  end = _MORE if level > 0 else _LESS
  return "#" + "".join(f"{round(even + abs(level) * (far - even)):02x}" for even, far in zip(_EVEN, end))


def color_keys(none: str, even: str) -> list[Key]:
  """The legend of the colors; `none` and `even` say what 0 and 1 mean."""
  levels = [(0.0, f"{none} (below 1/20)"), (0.25, "≤ ¼"), (0.5, "½"), (1.0, f"1: {even}"), (2.0, "2"), (4.0, "≥ 4")]
  return [Key(text, multiple_color(multiple)) for multiple, text in levels]


def _level(multiple: float) -> int:
  return max(-_LEVELS, min(_LEVELS, round(math.log2(multiple) * _LEVELS / 2)))


def _is_dark(multiple: float) -> bool:
  return multiple < _NONE_BELOW or (not math.isnan(multiple) and abs(_level(multiple)) > _LEVELS * 0.6)
