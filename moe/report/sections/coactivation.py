"""Which experts share tokens in validation text."""

from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import category_axis
from moe.report.chart import Chart
from moe.report.heat_map import color_keys, heat_map
from moe.report.section import Section, charts_section, layer_grid, layer_title
from moe.report.types import Layer, Run


def coactivation_section(runs: Sequence[Run]) -> Section | None:
  """How often pairs of experts take the same token, against chance."""
  about = (
    "How often two experts take the same token, as a multiple of what chance would give with as many pairs in total and"
    " as many tokens for each expert: 1 is chance, 2 is twice as often. The diagonal is blank."
  )
  legend, charts = color_keys("never together", "chance"), layer_grid(runs, _coactivation_map)
  return charts_section("Co-activation of experts", about, legend, charts)


def _coactivation_map(run: Run, name: str, layer: Layer) -> Chart | str:
  multiples = statistics.coactivation(layer.chosen)
  if np.isnan(multiples).all():
    return f"{name} · {run.name}: no token reached two experts."
  texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in multiples]
  x = category_axis("expert", [str(expert) for expert in range(layer.experts)], 17)
  return heat_map(layer_title("Co-activation", run, name), multiples, x, "expert", texts=texts)
