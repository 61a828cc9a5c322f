"""Charts: marks where the axes say, colors that mean what the legend says."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from moe.report.axes import category_axis, linear_axis, logarithmic_axis, number_text
from moe.report.chart import WIDTH, Chart
from moe.report.heat_map import heat_map, multiple_color
from moe.report.rendering import TEMPLATES


def drawn(chart: Chart) -> ElementTree.Element:
  return ElementTree.fromstring(TEMPLATES.get_template("chart.html").module.svg(chart))


@pytest.mark.parametrize(
  ("values", "low", "high", "texts"),
  [
    ([0.03, 0.97], 0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ([5.13, 6.82], 5.0, 7.0, ["5", "5.2", "5.4", "5.6", "5.8", "6", "6.2", "6.4", "6.6", "6.8", "7"]),
    ([-1.0, 1.0], -1.0, 1.0, ["-1", "-0.5", "0", "0.5", "1"]),
    ([2.0], 2.0, 4.0, ["2", "2.5", "3", "3.5", "4"]),
    ([math.nan], 0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
  ],
)
def test_a_linear_axis_ends_at_round_numbers_around_its_values(values, low, high, texts):
  axis = linear_axis("x", values)
  assert (axis.low, axis.high) == pytest.approx((low, high))
  assert [text for _, text in axis.ticks] == texts
  assert axis.fraction(low) == 0 and axis.fraction(high) == pytest.approx(1)


def test_given_ends_are_kept_and_ticks_lie_between_them():
  axis = linear_axis("x", [3.0], low=0.0, high=117.0)
  assert axis.high == 117 and [text for _, text in axis.ticks] == ["0", "20", "40", "60", "80", "100"]


def test_on_a_logarithmic_axis_equal_ratios_are_equal_distances():
  axis = logarithmic_axis("x", [3.0, 4000.0, math.nan])
  assert axis.fraction(100) - axis.fraction(10) == pytest.approx(axis.fraction(1000) - axis.fraction(100))
  assert [text for _, text in axis.ticks] == ["5", "10", "20", "50", "100", "200", "500", "1,000", "2,000"]
  assert len(logarithmic_axis("x", [300.0, 420.0]).ticks) >= 3


def test_cells_are_named_in_their_middles_and_only_so_many():
  assert category_axis("x", list("abc"), 3).ticks == ((0.5, "a"), (1.5, "b"), (2.5, "c"))
  assert [text for _, text in category_axis("x", [str(i) for i in range(64)], 16).ticks] == [
    str(i) for i in range(0, 64, 4)
  ]


@pytest.mark.parametrize(
  ("value", "text"), [(0, "0"), (0.125, "0.125"), (1234567, "1,234,567"), (2.50, "2.5"), (100, "100"), (6.25, "6.25")]
)
def test_numbers_are_written_without_needless_digits(value, text):
  assert number_text(value) == text


def test_marks_lie_where_the_axes_say():
  chart = Chart("t", linear_axis("x", [], low=0.0, high=10.0), linear_axis("y", [], low=0.0, high=1.0))
  chart.points([0, 10], [0, 1], "#000", ["first", "last"])
  chart.line([0, 5, 10], [0, math.nan, 1], "#123")
  svg = drawn(chart)
  first, last = svg.iter("circle")
  assert float(first.get("cx")) == chart.left and float(last.get("cx")) == WIDTH - 20
  assert float(first.get("cy")) > float(last.get("cy"))
  assert (first.get("data-tip"), last.get("data-tip")) == ("first", "last")
  (line,) = [path for path in svg.iter("path") if path.get("stroke") == "#123"]
  assert line.get("d").count("M") == 2, "a curve breaks where it has no value"


def test_colors_tell_less_from_more_and_nothing_and_blank_from_both():
  assert multiple_color(0.0) == multiple_color(0.049) != multiple_color(0.06)
  assert multiple_color(math.nan) is None
  assert multiple_color(4.0) == multiple_color(100.0) and multiple_color(0.25) == multiple_color(0.06)
  red, _, blue = (int(multiple_color(2.0)[i : i + 2], 16) for i in (1, 3, 5))
  assert red > blue
  red, _, blue = (int(multiple_color(0.5)[i : i + 2], 16) for i in (1, 3, 5))
  assert blue > red


def test_a_heat_map_colors_each_cell_by_its_number():
  multiples = np.array([[1.0, 1.0, 2.0], [0.0, math.nan, 2.0]])
  svg = drawn(heat_map("t", multiples, category_axis("c", list("abc"), 3), "r"))
  (cells,) = svg.iter("g")
  assert {path.get("fill"): path.get("d") for path in cells} == {
    multiple_color(1.0): "M0 0h2v1h-2z",
    multiple_color(2.0): "M2 0h1v1h-1zM2 1h1v1h-1z",
    multiple_color(0.0): "M0 1h1v1h-1z",
  }
  numbers = [float(part) for part in re.findall(r"[\d.]+", cells.get("transform"))]
  assert numbers[0] + 3 * numbers[2] == pytest.approx(WIDTH - 20, abs=0.01), "three columns fill the width"


def test_texts_stand_in_cells_only_where_columns_are_wide_enough():
  for columns, expected in ((8, 8), (32, 0)):
    texts = [["cell"] * columns]
    chart = heat_map("t", np.ones((1, columns)), category_axis("c", [""] * columns, 8), "r", texts=texts)
    assert sum(text.text == "cell" for text in drawn(chart).iter("text")) == expected


def test_every_text_of_a_chart_is_escaped():
  hostile = "<i>&'\""
  chart = Chart(hostile, category_axis(hostile, [hostile], 1), linear_axis(hostile, [1.0]))
  chart.bars([0.5], [1.0], 0.5, hostile, [hostile])
  chart.cell_text(0, 1, hostile, light=False)
  svg = drawn(chart)
  assert list(svg.iter("i")) == []
  assert svg.get("aria-label") == hostile
  assert [text.text for text in svg.iter("text")].count(hostile) == 5, "the title, a tick, two labels and a cell"
  (bar,) = svg.iter("rect")
  assert bar.get("data-tip") == bar.get("fill") == hostile


def test_an_attribute_that_is_none_is_left_out():
  chart = Chart("t", linear_axis("x", [0.0, 1.0]), linear_axis("y", [0.0, 1.0]))
  chart.line([0, 1], [0, 1], "#123")
  chart.line([0, 1], [0, 1], "#123", dashed=True)
  lines = [path for path in drawn(chart).iter("path") if path.get("class") == "line"]
  assert [line.get("stroke-dasharray") for line in lines] == [None, "5 4"]
