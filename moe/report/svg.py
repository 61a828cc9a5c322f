"""Charts as inline SVG: a frame with title, axes and ticks, and marks in it.

Nothing in them has an id, so any number can stand on one page. `data-tip` is what the page shows beside the mouse.
"""

from collections.abc import Sequence

import numpy as np

from moe.report.axes import Axis
from moe.report.html import Html, tag

WIDTH, HEIGHT = 404, 256
_RIGHT, _TOP, _BOTTOM = 20, 30, 44
_TITLE_CHARACTERS = 58


class Plot:
  """One chart, drawn mark by mark.

  Args:
    title: what is shown; cut where it is too long for the width.
    x: the axis below.
    y: the axis at the left.
    height: pixels, all included.
    left: pixels at the left of the marks.
    grid: whether lines lead from the ticks at the left through the marks.
  """

  def __init__(self, title: str, x: Axis, y: Axis, *, height: int = HEIGHT, left: int = 58, grid: bool = True):
    self.title, self.x, self.y, self.height, self.left, self.grid = title, x, y, height, left, grid
    self._marks: list[Html] = []

  def line(self, xs: Sequence[float], ys: Sequence[float], color: str, *, dashed: bool = False) -> None:
    """A curve through the points that both axes can show; it breaks where `ys` is not finite."""
    strokes, fresh = [], True
    for x, y in zip(xs, ys):
      if not np.isfinite(y):
        fresh = True
        continue
      strokes.append(f"{'M' if fresh else 'L'}{self._x(x):.1f} {self._y(y):.1f}")
      fresh = False
    dash = "5 4" if dashed else None
    self._add("path", d="".join(strokes), stroke=color, stroke_dasharray=dash, class_="line")

  def points(self, xs: Sequence[float], ys: Sequence[float], color: str, tips: Sequence[str], *, open: bool = False):
    """A dot for every point, with its tip; `open` ones are rings."""
    for x, y, tip in zip(xs, ys, tips):
      if np.isfinite(y):
        place = {"cx": f"{self._x(x):.1f}", "cy": f"{self._y(y):.1f}", "r": "3.6"}
        self._add("circle", **place, fill="#fff" if open else color, stroke=color, stroke_width="1.6", data_tip=tip)

  def bars(self, xs: Sequence[float], ys: Sequence[float], width: float, color: str, tips: Sequence[str]) -> None:
    """Bars from the lower end of the axis; `width` in its units."""
    for x, y, tip in zip(xs, ys, tips):
      left, right, top = self._x(x - width / 2), self._x(x + width / 2), self._y(y)
      size = {"width": f"{right - left:.1f}", "height": f"{self._y(self.y.low) - top:.1f}"}
      self._add("rect", x=f"{left:.1f}", y=f"{top:.1f}", **size, fill=color, data_tip=tip)

  def level(self, y: float, color: str, tip: str) -> None:
    """A dotted line across at a height that the curves are compared with."""
    d = f"M{self.left} {self._y(y):.1f}H{WIDTH - _RIGHT}"
    self._add("path", d=d, stroke=color, stroke_dasharray="1.5 3.5", class_="line", data_tip=tip)

  def cells(self, colors: Sequence[Sequence[str | None]]) -> None:
    """A colour for every cell of rows and columns; None leaves it blank."""
    paths: dict[str, list[str]] = {}
    for row, line in enumerate(colors):
      for first, end, color in _runs(line):
        if color is not None:
          paths.setdefault(color, []).append(f"M{first} {row}h{end - first}v1h{first - end}z")
    left, top = self._x(0), self._y(0)
    scale = f"translate({left:.2f} {top:.2f}) scale({self._x(1) - left:.4f} {self._y(1) - top:.4f})"
    # One path a colour, in units of a cell: a map of 64 experts by 64 stays small.
    areas = [tag("path", d="".join(steps), fill=color) for color, steps in paths.items()]
    self._add("g", *areas, transform=scale, shape_rendering="crispEdges")

  def text(self, x: float, y: float, text: str, *, light: bool) -> None:
    """A word centred in the cell whose corner is (x, y)."""
    place = {"x": f"{self._x(x + 0.5):.1f}", "y": f"{self._y(y + 0.5) + 3.5:.1f}"}
    self._add("text", text, **place, class_="cell light" if light else "cell")

  def markup(self) -> Html:
    """The SVG element."""
    title = self.title if len(self.title) <= _TITLE_CHARACTERS else self.title[: _TITLE_CHARACTERS - 1] + "…"
    heading = tag("text", title, x="0", y="14", class_="title")
    frame = [heading, *self._ticks(), *self._marks, *self._labels()]
    box = f"0 0 {WIDTH} {self.height}"
    return tag("svg", *frame, viewBox=box, width=WIDTH, height=self.height, role="img", aria_label=self.title)

  def _add(self, name: str, *children: str, **attributes: str | None) -> None:
    self._marks.append(tag(name, *children, **attributes))

  def _x(self, value: float) -> float:
    return self.left + self.x.place(value) * (WIDTH - _RIGHT - self.left)

  def _y(self, value: float) -> float:
    return self.height - _BOTTOM - self.y.place(value) * (self.height - _BOTTOM - _TOP)

  def _ticks(self) -> list[Html]:
    bottom = self.height - _BOTTOM
    marks = [tag("path", d=f"M{self.left} {bottom}H{WIDTH - _RIGHT}", class_="axis")]
    for value, text in self.x.ticks:
      marks.append(tag("text", text, x=f"{self._x(value):.1f}", y=bottom + 16, class_="tick middle"))
    for value, text in self.y.ticks:
      y = self._y(value)
      if self.grid:
        marks.append(tag("path", d=f"M{self.left} {y:.1f}H{WIDTH - _RIGHT}", class_="grid"))
      marks.append(tag("text", text, x=self.left - 6, y=f"{y + 3.5:.1f}", class_="tick end"))
    return marks

  def _labels(self) -> list[Html]:
    middle = (self.left + WIDTH - _RIGHT) / 2
    height = (_TOP + self.height - _BOTTOM) / 2
    below = tag("text", self.x.label, x=f"{middle:.1f}", y=self.height - 8, class_="label middle")
    turned = f"translate(12 {height:.1f}) rotate(-90)"
    return [below, tag("text", self.y.label, transform=turned, class_="label middle")]


def _runs(line: Sequence[str | None]) -> list[tuple[int, int, str | None]]:
  """Neighbouring equal cells as (first, end, colour)."""
  starts = [i for i in range(len(line)) if i == 0 or line[i] != line[i - 1]]
  return [(first, end, line[first]) for first, end in zip(starts, [*starts[1:], len(line)])]
