"""What the checkpoints' routers do with validation text: experts per token, who goes together, what moves."""

from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import Axis, bins, linear
from moe.report.collect import Layer, Run
from moe.report.heat_map import heat_map, scale
from moe.report.html import Html, join, tag
from moe.report.layout import (
  REFERENCE,
  Section,
  by_layer,
  color_of,
  figure,
  label,
  layer_names,
  legend,
  steps_axis,
  titled,
)
from moe.report.svg import Plot

# Bars smaller than this would not be seen.
_SMALLEST_BAR = 0.001


def experts_per_token(runs: Sequence[Run]) -> Section | None:
  """How many experts tokens get, against experts that take tokens independently."""
  about = (
    "Bars: the share of the validation tokens that reached 0, 1, 2, ... experts. Rings: Binomial(E, c/E), which would"
    " hold if each expert took each token independently with the same probability; c is the mean number of experts per"
    " token that was observed. In soft routing, where every token reaches every expert, an expert counts where the"
    " token's weight for it is above an even share, 1/E."
  )
  keys = legend(runs, "○ Binomial(E, c/E)", routed=True)
  return _section("Experts per token", about, [keys, by_layer(runs, lambda *each: figure(_histogram(runs, *each)))])


def churn(runs: Sequence[Run]) -> Section | None:
  """The share of the assignments that changed from checkpoint to checkpoint."""
  about = (
    "Of the (token, expert) assignments that either of two consecutive kept checkpoints makes on the same validation"
    " tokens, the share that only one of them makes (Jaccard distance): 0 if nothing moved, 1 if everything did."
    " Dotted: what two unrelated routings of the same sizes would give."
  )
  charts = [chart for name in layer_names(runs) if (chart := _churn_chart(runs, name)) is not None]
  body = [legend(runs, "dotted: unrelated routings", routed=True), tag("div", *map(figure, charts), class_="row")]
  return _section("Churn between checkpoints", about, [*(body if charts else ()), *_without_churn(runs)])


def coactivation(runs: Sequence[Run]) -> Section | None:
  """Which experts share tokens."""
  about = (
    "How often two experts take the same token, as a multiple of what chance would give if it made as many pairs and"
    " gave every expert as many tokens: 1 is chance, 2 twice as often. The diagonal is blank."
  )
  keys = tag("p", scale("never together", "chance"), class_="legend")
  return _section("Co-activation of experts", about, [keys, by_layer(runs, _coactivation_map)])


def _section(title: str, about: str, body: list[Html]) -> Section | None:
  """None where nothing was drawn."""
  return Section(title, about, join(body)) if any("<figure" in part or "<p>" in part for part in body) else None


def _histogram(runs: Sequence[Run], run: Run, name: str, layer: Layer) -> Html:
  found, mean = statistics.experts_per_token(layer.chosen), layer.chosen.sum(1).mean()
  null = statistics.binomial_null(layer.experts, mean)
  last = max(4, *np.flatnonzero((found > _SMALLEST_BAR) | (null > _SMALLEST_BAR)).tolist())
  numbers = list(range(min(last, layer.experts) + 1))
  ticks = tuple((float(n), str(n)) for n in numbers[:: 1 + len(numbers) // 17])
  x = Axis("experts per token", -0.6, numbers[-1] + 0.6, ticks)
  y = linear("share of tokens", [*found, *null], low=0.0)
  plot = Plot(f"{titled('Experts', run, name)} · mean {mean:.2f}", x, y)
  plot.bars(numbers, found, 0.8, color_of(runs, run), [f"{n} experts: {found[n]:.1%} of tokens" for n in numbers])
  plot.line(numbers, null[: len(numbers)], REFERENCE, dashed=True)
  plot.points(numbers, null, REFERENCE, [f"{n} experts by chance: {null[n]:.1%}" for n in numbers], open=True)
  return plot.markup()


def _churn_chart(runs: Sequence[Run], name: str) -> Html | None:
  moved = [(run, run.churn[name]) for run in runs if run.churn.get(name)]
  if not moved:
    return None
  plot = Plot(f"Churn · {name}", steps_axis(runs), linear("changed share of assignments", [], low=0.0, high=1.0))
  for run, changes in moved:
    steps, distances = [change.step for change in changes], [change.distance for change in changes]
    plot.level(float(np.mean([change.random for change in changes])), color_of(runs, run), f"{run.name}: unrelated")
    plot.line(steps, distances, color_of(runs, run))
    tips = [f"{label(run)}, up to step {step:,}: {distance:.1%}" for step, distance in zip(steps, distances)]
    plot.points(steps, distances, color_of(runs, run), tips)
  return plot.markup()


def _without_churn(runs: Sequence[Run]) -> list[Html]:
  """Why a run has no churn, or not all of it."""
  one = [run.name for run in runs if run.layers and not any(run.churn.values())]
  notes = [f"{name}: one checkpoint only; config.train.keep says how many a run keeps." for name in one]
  notes += [f"{run.name}: checkpoints {run.unreadable} are damaged and left out." for run in runs if run.unreadable]
  return [tag("p", note) for note in notes]


def _coactivation_map(run: Run, name: str, layer: Layer) -> Html | None:
  multiples = statistics.coactivation(layer.chosen)
  if np.isnan(multiples).all():
    return tag("p", f"{name} · {run.name}: no token reached two experts.", class_="nothing")
  texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in multiples]
  columns = bins("expert", [str(expert) for expert in range(layer.experts)], 17)
  return figure(heat_map(titled("Co-activation", run, name), multiples, columns, "expert", texts=texts))
