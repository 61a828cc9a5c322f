"""Curves recorded while the runs trained: loss, dropped tokens, the entropy of the gates."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import Axis, linear_axis, logarithmic_axis
from moe.report.chart import Chart
from moe.report.section import Grid, Section, charts_section, layer_names, run_color, seeds_keys, step_axis
from moe.report.seeds import Seeds, by_config
from moe.report.types import Run
from moe.training.figure import running_mean

_LINES = ("solid: training, running mean", "dashed with dots: validation")
_MOST_POINTS, _MOST_DOTS = 300, 60

# Steps `[n]` and values `[runs, n]`.
Curve = tuple[np.ndarray, np.ndarray]
Level = tuple[float, str]


def loss_section(runs: Sequence[Run]) -> Section | None:
  """Loss, perplexity and bits per byte."""
  charts = [
    _metric_chart("Loss per token", runs, "loss", lambda v: linear_axis("cross-entropy (nats per token)", v)),
    _metric_chart(
      "Perplexity",
      runs,
      "loss",
      lambda v: logarithmic_axis("perplexity per token (log scale)", v),
      transform=lambda values: np.exp(np.minimum(values, 700.0)),
    ),
    _metric_chart("Loss per byte", runs, "bits_per_byte", lambda v: linear_axis("loss (bits per byte of text)", v)),
  ]
  about = (
    "Cross-entropy without auxiliary losses; perplexity is its exponential. Compare runs with different vocabularies"
    " only in bits per byte."
  )
  return charts_section("Loss and perplexity", about, seeds_keys(runs, *_LINES), _drawn(charts))


def dropped_section(runs: Sequence[Run]) -> Section | None:
  """The dropped share, per layer."""
  about = (
    "Token choice: the share of the requested assignments that found no slot. Expert choice and soft routing, where"
    " tokens request nothing: the share of the tokens that no expert took."
  )
  charts = [
    _metric_chart(f"Dropped · {name}", runs, f"{name}/dropped", lambda v: linear_axis("dropped share", v, low=0.0))
    for name in layer_names(runs)
  ]
  return charts_section("Dropped tokens", about, seeds_keys(runs, *_LINES, routed=True), _drawn(charts))


def gate_entropy_section(runs: Sequence[Run]) -> Section | None:
  """The entropy of the router's probabilities, per layer."""
  about = (
    "The entropy of the router's probabilities over experts, averaged over tokens: ln E if it does not distinguish the"
    " experts, 0 if it is certain of one."
  )
  charts = [
    _metric_chart(
      f"Gate entropy · {name}",
      runs,
      f"{name}/gate_entropy",
      lambda v: linear_axis("entropy (nats)", v, low=0.0),
      level=functools.partial(_undecided, layer=name),
    )
    for name in layer_names(runs)
  ]
  legend = seeds_keys(runs, *_LINES, "dotted: ln E, undecided", routed=True)
  return charts_section("Entropy of the gates", about, legend, _drawn(charts))


def _drawn(charts: Iterable[Chart | None]) -> Grid:
  return Grid([chart for chart in charts if chart is not None])


def _undecided(run: Run, layer: str) -> Level | None:
  """The entropy of even gates, of all experts that they are over: those that cost nothing too."""
  stack = run.trained.config.model.stacks.get(layer.split("/")[0])
  if stack is None or stack.moe is None:
    return None
  experts = stack.moe.num_experts + sum(stack.moe.router.free_experts or ())
  return math.log(experts), f"ln {experts}"


def _metric_chart(
  title: str,
  runs: Sequence[Run],
  metric: str,
  y_axis: Callable[[Iterable[float]], Axis],
  *,
  transform: Callable[[np.ndarray], np.ndarray] = lambda values: values,
  level: Callable[[Run], Level | None] = lambda run: None,
) -> Chart | None:
  """A metric over training, every config in its color: a running mean of training, dots of validation.

  Of runs that differ only in seeds it shows the mean, and the area from the lowest to the highest.

  Args:
    title: of the chart.
    runs: of the page.
    metric: its name in the records.
    y_axis: makes the vertical axis for these values.
    transform: applied to the running mean and to the values of validation.
    level: a value to compare a run with, and its name.

  Returns:
    None where no run recorded the metric.
  """
  drawn: list[tuple[Seeds, Curve, Curve, Level | None]] = []
  for group in by_config(runs):
    training = _thinned(*group.series("train", metric, running_mean), _MOST_POINTS)
    validation = _thinned(*group.series("validation", metric), _MOST_DOTS)
    if len(training[0]) or len(validation[0]):
      training, validation = (training[0], transform(training[1])), (validation[0], transform(validation[1]))
      drawn.append((group, training, validation, level(group.runs[0])))
  if not drawn:
    return None
  heights = [y for _, *curves, _ in drawn for _, values in curves for y in values.flat]
  heights += [reference[0] for *_, reference in drawn if reference is not None]
  chart = Chart(title, step_axis(runs), y_axis(heights))
  for group, training, validation, reference in drawn:
    color = run_color(runs, group.runs[0])
    if reference is not None:
      chart.level(reference[0], color, f"{group.name}: {reference[1]}")
    for (steps, values), dashed in ((training, False), (validation, True)):
      if len(values) > 1:
        chart.band(steps, values.min(0), values.max(0), color)
      chart.line(steps, values.mean(0), color, dashed=dashed)
    steps, values = validation
    chart.points(steps, values.mean(0), color, [_tip(group, *each) for each in zip(steps, values.T)])
  return chart


def _thinned(steps: np.ndarray, values: np.ndarray, most: int) -> Curve:
  """`statistics.thin` of a curve of several runs."""
  steps, columns = statistics.thin(steps, values.T, most)
  return steps, columns.T


def _tip(group: Seeds, step: float, values: np.ndarray) -> str:
  """What the page says of a validation with a value for each seed."""
  leak = f" ({group.runs[0].leaks})" if group.runs[0].leaks else ""
  spread = "" if len(values) == 1 else f" ({values.min():.4g} to {values.max():.4g})"
  return f"{group.name}{leak}, validation at step {step:,.0f}: {values.mean():.4g}{spread}"
