"""How sections are laid out: a colour for each run, a row of figures for each layer, curves of several runs in one."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import Axis, linear
from moe.report.collect import Layer, Run
from moe.report.html import Html, tag
from moe.report.svg import Plot
from moe.training.figure import smooth

# Okabe and Ito's colours, which stay apart in every kind of colour vision; black and grey are for references.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REFERENCE = "#3b4250"
_MOST_POINTS, _MOST_DOTS = 300, 60
LEAKS = "future leakage"


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page.

  Attributes:
    title: its heading.
    about: a paragraph that defines what is shown.
    body: the figures and tables.
  """

  title: str
  about: str | Html
  body: Html


def color_of(runs: Sequence[Run], run: Run) -> str:
  """The run's colour in all charts."""
  return COLORS[runs.index(run) % len(COLORS)]


def label(run: Run) -> str:
  """The run's name, with the word that goes with every loss of it."""
  return f"{run.name} ({LEAKS})" if run.leaks else run.name


def run_key(runs: Sequence[Run], run: Run) -> Html:
  """A swatch of the run's colour and its label."""
  swatch = tag("span", class_="swatch", style=f"background:{color_of(runs, run)}")
  return tag("span", swatch, label(run), class_="key leaks" if run.leaks else "key")


def legend(runs: Sequence[Run], *notes: str, routed: bool = False) -> Html:
  """Whose colour is whose, and what kinds of lines there are; with `routed` only of runs that have routers."""
  keys = [run_key(runs, run) for run in runs if run.layers or not routed]
  return tag("p", *keys, *(tag("span", note, class_="key note") for note in notes), class_="legend")


def layer_names(runs: Sequence[Run]) -> list[str]:
  """The MoE layers that any run has, encoders first, in the order of the model."""
  found = {name for run in runs for name in run.layers}
  return sorted(found, key=lambda name: (name.split("/")[0] != "encoder", int(name.rsplit("_", 1)[1])))


def figure(chart: Html) -> Html:
  return tag("figure", chart)


def by_layer(runs: Sequence[Run], draw: Callable[[Run, str, Layer], Html | None]) -> Html:
  """What `draw` makes of every layer of every run with routers: a row a layer, a column a run where there are several.

  Empty where it made nothing.
  """
  routed = [run for run in runs if run.layers]
  made = [
    [draw(run, name, run.layers[name]) if name in run.layers else None for run in routed] for name in layer_names(runs)
  ]
  rows = [row for row in made if any(row)]
  return columns([cell or tag("div") for row in rows for cell in row], len(routed)) if rows else Html("")


def columns(cells: Sequence[Html], count: int) -> Html:
  """Cells in `count` columns of equal width; a single run's wherever there is room."""
  if count == 1:
    return tag("div", *cells, class_="row")
  return tag("div", *cells, class_="columns", style=f"grid-template-columns: repeat({count}, minmax(422px, 1fr))")


def titled(what: str, run: Run, name: str) -> str:
  """The title of a chart of one layer of one run."""
  return f"{what} · {name} · {run.name}"


def series(run: Run, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of a metric in one kind of records; where JSON could not hold one as a number it is left out.

  Returns:
    `[n]` and `[n]`, or `[n, E]` of a metric that is a vector.
  """
  found = [(record["step"], record[name]) for record in run.records if record["kind"] == kind and name in record]
  finite = [
    (step, value) for step, value in found if not any(isinstance(part, str) for part in np.ravel(value).tolist())
  ]
  return np.array([step for step, _ in finite]), np.array([value for _, value in finite], float)


Curve = tuple[np.ndarray, np.ndarray]


def smoothed(curve: Curve) -> Curve:
  """The running mean, in few enough points for a page."""
  steps, values = curve
  return statistics.thin(steps, smooth(values), _MOST_POINTS) if len(steps) else curve


def curves(
  title: str,
  runs: Sequence[Run],
  name: str,
  axis: Callable[[Iterable[float]], Axis],
  *,
  transform: Callable[[np.ndarray], np.ndarray] = lambda values: values,
  levels: Callable[[Run], tuple[float, str] | None] = lambda run: None,
) -> Html | None:
  """A metric over training, every run in its colour: training's running mean, validation as points. None without any.

  Args:
    title: of the chart.
    runs: of the page.
    name: of the metric.
    axis: makes the axis at the left of all values.
    transform: applied to training's running mean and to validation.
    levels: a height to compare a run with, and what it is.
  """
  drawn = []
  for run in runs:
    steps, values = smoothed(series(run, "train", name))
    checked, found = statistics.thin(*series(run, "validation", name), _MOST_DOTS)
    if len(steps) or len(checked):
      drawn.append((run, (steps, transform(values)), (checked, transform(found)), levels(run)))
  if not drawn:
    return None
  heights = [value for _, *both, level in drawn for value in (*both[0][1], *both[1][1], *(level[:1] if level else ()))]
  plot = Plot(title, steps_axis(runs), axis(heights))
  for run, training, validation, level in drawn:
    color = color_of(runs, run)
    if level is not None and math.isfinite(level[0]):
      plot.level(level[0], color, f"{run.name}: {level[1]}")
    plot.line(*training, color)
    plot.line(*validation, color, dashed=True)
    tips = [f"{label(run)}, validation at step {step:,.0f}: {value:.4g}" for step, value in zip(*validation)]
    plot.points(*validation, color, tips)
  return plot.markup()


def steps_axis(runs: Sequence[Run]) -> Axis:
  """From step 0 to the last one of any run, so that all charts of a page compare."""
  last = max(step for run in runs for step in (run.trained.step, *(record["step"] for record in run.records)))
  axis = linear("training step", [], low=0.0, high=float(last))
  return axis if last < 10_000 else dataclasses.replace(axis, ticks=axis.ticks[::2])  # long numbers need room
