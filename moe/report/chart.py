"""Charts of the page as data: a frame and the SVG marks inside it, laid out by `templates/chart.html`.

They are not Matplotlib's, which made the page worse: a line chart with tooltips took 37 KB and 98 ms instead of 15 KB
and 2 ms, a 64 x 64 heat map 779 KB (or an embedded image, which the page's policy forbids) instead of 55 KB, and every
chart brought 60 to 130 ids that clash with those of the next one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from moe.report.axes import Axis

Values = Sequence[float] | np.ndarray

WIDTH, HEIGHT = 404, 256
_RIGHT, _TOP, _BOTTOM = 20, 30, 44
_TITLE_CHARACTERS = 58


@dataclasses.dataclass(frozen=True)
class Mark:
  """An SVG element. Its attribute `data-tip` is what the page shows next to the mouse."""

  name: str
  attributes: Mapping[str, str | None]
  text: str = ""
  children: Sequence["Mark"] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart to which marks are added one by one.

  Attributes:
    title: what is shown.
    x, y: the horizontal and the vertical axis.
    height: of the whole chart, in pixels.
    grid: whether the ticks of `y` have grid lines.
    left, right, top, bottom: the edges of the area for marks, in pixels.
  """

  title: str
  x: Axis
  y: Axis
  height: int = HEIGHT
  grid: bool = True
  marks: list[Mark] = dataclasses.field(default_factory=list)

  width, left, right, top = WIDTH, 58, WIDTH - _RIGHT, _TOP

  @property
  def bottom(self) -> int:
    return self.height - _BOTTOM

  @property
  def short_title(self) -> str:
    """The title, cut to the chart's width."""
    return self.title if len(self.title) <= _TITLE_CHARACTERS else self.title[: _TITLE_CHARACTERS - 1] + "…"

  def x_pixel(self, value: float) -> float:
    return self.left + self.x.fraction(value) * (self.right - self.left)

  def y_pixel(self, value: float) -> float:
    return self.bottom - self.y.fraction(value) * (self.bottom - self.top)

  def line(self, xs: Values, ys: Values, color: str, *, dashed: bool = False) -> None:
    """Adds a curve; it breaks where `ys` is not finite."""
    path, command = "", "M"
    for x, y in zip(xs, ys):
      if math.isfinite(y):
        path += f"{command}{self.x_pixel(x):.1f} {self.y_pixel(y):.1f}"
      command = "L" if math.isfinite(y) else "M"
    dashes = "5 4" if dashed else None
    self._add("path", {"d": path, "stroke": color, "stroke-dasharray": dashes, "class": "line"})

  def band(self, xs: Values, low: Values, high: Values, color: str) -> None:
    """Adds the area between two curves; nothing where a value is not finite."""
    corners = [*zip(xs, high), *reversed([*zip(xs, low)])]
    if all(math.isfinite(y) for _, y in corners):
      path = "L".join(f"{self.x_pixel(x):.1f} {self.y_pixel(y):.1f}" for x, y in corners)
      self._add("path", {"d": f"M{path}Z", "fill": color, "fill-opacity": "0.18"})

  def points(self, xs: Values, ys: Values, color: str, tips: Sequence[str], *, hollow: bool = False) -> None:
    """Adds a dot, or a ring, with a tooltip for every finite point."""
    style = {"r": "3.6", "fill": "#fff" if hollow else color, "stroke": color, "stroke-width": "1.6"}
    for x, y, tip in zip(xs, ys, tips):
      if math.isfinite(y):
        center = {"cx": f"{self.x_pixel(x):.1f}", "cy": f"{self.y_pixel(y):.1f}"}
        self._add("circle", center | style | {"data-tip": tip})

  def bars(self, xs: Values, ys: Values, width: float, color: str, tips: Sequence[str]) -> None:
    """Adds bars with tooltips, `width` units of the x axis wide, from the low end of the y axis."""
    for x, y, tip in zip(xs, ys, tips):
      left, right, top = self.x_pixel(x - width / 2), self.x_pixel(x + width / 2), self.y_pixel(y)
      size = {"width": f"{right - left:.1f}", "height": f"{self.bottom - top:.1f}"}
      self._add("rect", {"x": f"{left:.1f}", "y": f"{top:.1f}"} | size | {"fill": color, "data-tip": tip})

  def level(self, y: float, color: str, tip: str) -> None:
    """Adds a dotted horizontal line to compare curves with."""
    path = f"M{self.left} {self.y_pixel(y):.1f}H{self.right}"
    self._add("path", {"d": path, "stroke": color, "stroke-dasharray": "1.5 3.5", "class": "line", "data-tip": tip})

  def cells(self, colors: Sequence[Sequence[str | None]]) -> None:
    """Adds colored cells, given as rows; None leaves a cell blank."""
    paths: dict[str, str] = {}
    for row, line in enumerate(colors):
      for first, end, color in _equal_neighbors(line):
        if color is not None:
          paths[color] = paths.get(color, "") + f"M{first} {row}h{end - first}v1h{first - end}z"
    # One path per color, in units of a cell: a map of 64 by 64 experts stays small.
    left, top = self.x_pixel(0), self.y_pixel(0)
    scale = f"translate({left:.2f} {top:.2f}) scale({self.x_pixel(1) - left:.4f} {self.y_pixel(1) - top:.4f})"
    areas = [Mark("path", {"d": path, "fill": color}) for color, path in paths.items()]
    self.marks.append(Mark("g", {"transform": scale, "shape-rendering": "crispEdges"}, children=areas))

  def cell_text(self, column: int, row: int, text: str, *, light: bool) -> None:
    """Adds a text in the middle of a cell."""
    center = {"x": f"{self.x_pixel(column + 0.5):.1f}", "y": f"{self.y_pixel(row + 0.5) + 3.5:.1f}"}
    self._add("text", center | {"class": "cell light" if light else "cell"}, text)

  def _add(self, name: str, attributes: Mapping[str, str | None], text: str = "") -> None:
    self.marks.append(Mark(name, attributes, text))


def _equal_neighbors(line: Sequence[str | None]) -> list[tuple[int, int, str | None]]:
  """Runs of equal cells as (first, end, color)."""
  starts = [i for i in range(len(line)) if i == 0 or line[i] != line[i - 1]]
  return [(first, end, line[first]) for first, end in zip(starts, [*starts[1:], len(line)])]
