"""How many experts tokens reach in validation text."""

import functools
from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import Axis, linear_axis
from moe.report.chart import Chart
from moe.report.section import REFERENCE_COLOR, Section, charts_section, layer_grid, layer_title, run_color, run_keys
from moe.report.types import Layer, Run

_VISIBLE = 0.001  # a lower bar could not be seen


def experts_per_token_section(runs: Sequence[Run]) -> Section | None:
  """The share of tokens by number of experts, against experts that take tokens independently."""
  about = (
    "Bars: the share of the validation tokens that reached 0, 1, 2, ... experts. Rings: Binomial(E, c/E), the"
    " distribution if every expert took each token independently with the same probability; c is the observed mean"
    " number of experts per token. In soft routing, where every token reaches every expert, an expert counts if the"
    " token's weight for it is above an even share, 1/E."
  )
  legend = run_keys(runs, "○ Binomial(E, c/E)", routed=True)
  return charts_section("Experts per token", about, legend, layer_grid(runs, functools.partial(_histogram, runs)))


def _histogram(runs: Sequence[Run], run: Run, name: str, layer: Layer) -> Chart:
  found, mean = statistics.experts_per_token_shares(layer.chosen), layer.chosen.sum(1).mean()
  null = statistics.binomial_null(layer.experts, mean)
  last = max(4, *np.flatnonzero((found > _VISIBLE) | (null > _VISIBLE)).tolist())
  numbers = list(range(min(last, layer.experts) + 1))
  ticks = tuple((float(n), str(n)) for n in numbers[:: 1 + len(numbers) // 17])
  x = Axis("experts per token", -0.6, numbers[-1] + 0.6, ticks)
  y = linear_axis("share of tokens", [*found, *null], low=0.0)
  chart = Chart(f"{layer_title('Experts', run, name)} · mean {mean:.2f}", x, y)
  chart.bars(numbers, found, 0.8, run_color(runs, run), [f"{n} experts: {found[n]:.1%} of tokens" for n in numbers])
  chart.line(numbers, null, REFERENCE_COLOR, dashed=True)
  chart.points(numbers, null, REFERENCE_COLOR, [f"{n} experts by chance: {null[n]:.1%}" for n in numbers], hollow=True)
  return chart
