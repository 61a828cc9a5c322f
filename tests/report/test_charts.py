"""Axes and heat maps: numbers at their places, colours that mean what the legend says."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from moe.report.axes import bins, linear, logarithmic, number
from moe.report.heat_map import color, heat_map
from moe.report.html import Html, escape, printable, tag, visible
from moe.report.svg import WIDTH, Plot


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
  axis = linear("x", values)
  assert (axis.low, axis.high) == pytest.approx((low, high))
  assert [text for _, text in axis.ticks] == texts
  assert axis.place(low) == 0 and axis.place(high) == pytest.approx(1)


def test_given_ends_are_kept_and_ticks_lie_between_them():
  axis = linear("x", [3.0], low=0.0, high=117.0)
  assert axis.high == 117 and [text for _, text in axis.ticks] == ["0", "20", "40", "60", "80", "100"]


def test_on_a_logarithmic_axis_equal_ratios_are_equal_distances():
  axis = logarithmic("x", [3.0, 4000.0, math.nan])
  assert axis.place(100) - axis.place(10) == pytest.approx(axis.place(1000) - axis.place(100))
  assert [text for _, text in axis.ticks] == ["5", "10", "20", "50", "100", "200", "500", "1,000", "2,000"]
  assert len(logarithmic("x", [300.0, 420.0]).ticks) >= 3


def test_cells_are_named_in_their_middles_and_only_so_many():
  assert bins("x", list("abc"), 3).ticks == ((0.5, "a"), (1.5, "b"), (2.5, "c"))
  assert [text for _, text in bins("x", [str(i) for i in range(64)], 16).ticks] == [str(i) for i in range(0, 64, 4)]


@pytest.mark.parametrize(
  ("value", "text"), [(0, "0"), (0.125, "0.125"), (1234567, "1,234,567"), (2.50, "2.5"), (100, "100"), (6.25, "6.25")]
)
def test_numbers_are_written_without_needless_digits(value, text):
  assert number(value) == text


def test_marks_lie_where_the_axes_say():
  plot = Plot("t", linear("x", [], low=0.0, high=10.0), linear("y", [], low=0.0, high=1.0))
  plot.points([0, 10], [0, 1], "#000", ["first", "last"])
  plot.line([0, 5, 10], [0, math.nan, 1], "#123")
  svg = ElementTree.fromstring(plot.markup())
  first, last = svg.iter("circle")
  assert float(first.get("cx")) == plot.left and float(last.get("cx")) == WIDTH - 20
  assert float(first.get("cy")) > float(last.get("cy"))
  assert (first.get("data-tip"), last.get("data-tip")) == ("first", "last")
  (line,) = [path for path in svg.iter("path") if path.get("stroke") == "#123"]
  assert line.get("d").count("M") == 2, "a curve breaks where it has no value"


def test_colours_tell_less_from_more_and_nothing_and_blank_from_both():
  assert color(0.0) == color(0.049) != color(0.06)
  assert color(math.nan) is None
  assert color(4.0) == color(100.0) and color(0.25) == color(0.06)
  red, _, blue = (int(color(2.0)[i : i + 2], 16) for i in (1, 3, 5))
  assert red > blue
  red, _, blue = (int(color(0.5)[i : i + 2], 16) for i in (1, 3, 5))
  assert blue > red


def test_a_heat_map_colours_each_cell_by_its_number():
  multiples = np.array([[1.0, 1.0, 2.0], [0.0, math.nan, 2.0]])
  svg = ElementTree.fromstring(heat_map("t", multiples, bins("c", list("abc"), 3), "r"))
  (cells,) = svg.iter("g")
  assert {path.get("fill"): path.get("d") for path in cells} == {
    color(1.0): "M0 0h2v1h-2z",
    color(2.0): "M2 0h1v1h-1zM2 1h1v1h-1z",
    color(0.0): "M0 1h1v1h-1z",
  }
  numbers = [float(part) for part in re.findall(r"[\d.]+", cells.get("transform"))]
  assert numbers[0] + 3 * numbers[2] == pytest.approx(WIDTH - 20, abs=0.01), "three columns fill the width"


def test_texts_stand_in_cells_only_where_columns_are_wide_enough():
  for columns, expected in ((8, 8), (32, 0)):
    texts = [["cell"] * columns]
    map_ = heat_map("t", np.ones((1, columns)), bins("c", [""] * columns, 8), "r", texts=texts)
    assert sum(text.text == "cell" for text in ElementTree.fromstring(map_).iter("text")) == expected


def test_what_is_not_markup_already_is_escaped_in_text_and_attributes():
  assert tag("b", "<i>&", title='"x"') == '<b title="&quot;x&quot;">&lt;i&gt;&amp;</b>'
  assert escape(Html("<i>")) == "<i>"
  assert tag("p", tag("i", "x"), class_=None) == "<p><i>x</i></p>"


def test_characters_that_would_control_the_page_are_shown_instead():
  assert printable("a\x00b\x0c\u202ec\n\td") == "a␀b␌⟨202e⟩c\n\td"
  assert visible(" x\n\t") == "␣x↵⇥"
