"""How many tokens each expert gets, over training and at its end."""

from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import category_axis, number_text
from moe.report.chart import Chart
from moe.report.heat_map import color_keys, heat_map
from moe.report.section import Key, Section, layer_grid, layer_names, layer_title, run_key
from moe.report.types import Layer, Run

_MOST_COLUMNS = 60
_VISIBLE = 0.02  # a smaller deviation from an even load has no color of its own


def load_section(runs: Sequence[Run]) -> Section | None:
  """Each expert's share over the steps, and which experts are dead."""
  routed = [run for run in runs if run.layers]
  dense = [run.name for run in runs if not run.layers]
  note = f"Dense, without routers: {', '.join(dense)}." if dense else ""
  if not routed:
    return Section("Routers", note)
  about = (
    "An expert's load is its share of all assignments of a layer (in soft routing: of the tokens' weight), as recorded"
    " in training. Colors show it as a multiple of an even share, 1/E. An expert is called dead if its share is less"
    f" than {statistics.DEAD_SHARE:.0%} of an even one. {note}"
  )
  data = {
    "legend": color_keys("dead", "an even share"),
    "charts": layer_grid(routed, _load_map),
    "head": ["layer", "run", "dead in validation text", "dead in the last training record", "largest load", "smallest"],
    "rows": _rows(runs, routed),
  }
  return Section("Load of the experts", about, "expert_load.html", data)


def _load_map(run: Run, name: str, layer: Layer) -> Chart | str | None:
  steps, loads = run.series("train", f"{name}/load")
  if not len(steps):
    return None
  experts = loads.shape[1]
  if np.abs(loads * experts - 1).max() < _VISIBLE:
    return f"{name} · {run.name}: an even load, {number_text(100 / experts)}% for every expert, in every record."
  steps, loads = statistics.thin(steps, loads, _MOST_COLUMNS)
  x = category_axis("training step", [number_text(round(step)) for step in steps], 6)
  return heat_map(layer_title("Load", run, name), loads.T * experts, x, "expert")


def _rows(runs: Sequence[Run], routed: Sequence[Run]) -> list[list[str | Key]]:
  return [
    [name, run_key(runs, run), *_row(run, name, run.layers[name])]
    for name in layer_names(routed)
    for run in routed
    if name in run.layers
  ]


def _row(run: Run, name: str, layer: Layer) -> list[str]:
  _, loads = run.series("train", f"{name}/load")
  last = _dead(loads[-1]) if len(loads) else "nothing recorded"
  multiples = layer.load * layer.experts
  extremes = [
    f"{multiples[expert]:.2f} × even (expert {expert})" for expert in (multiples.argmax(), multiples.argmin())
  ]
  return [_dead(layer.load), last, *extremes]


def _dead(load: np.ndarray) -> str:
  dead = statistics.dead_experts(load)
  return f"{len(dead)} of {len(load)}: {', '.join(map(str, dead))}" if dead else f"none of {len(load)}"
