"""What was recorded while the runs trained: loss, load, drops, the gates' entropy."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import bins, linear, logarithmic, number
from moe.report.collect import Layer, Run
from moe.report.heat_map import heat_map, scale
from moe.report.html import Html, join, table, tag
from moe.report.layout import Section, by_layer, curves, figure, layer_names, legend, run_key, series, titled

_LINES = ("line: training, running mean", "dashed with dots: validation")
_COLUMNS = 60
_VISIBLE = 0.02  # a smaller distance from an even load has no colour of its own


def loss(runs: Sequence[Run]) -> Section | None:
  """Loss, perplexity and bits per byte."""
  charts = [
    curves("Loss per token", runs, "loss", lambda v: linear("cross-entropy (nats per token)", v)),
    curves(
      "Perplexity",
      runs,
      "loss",
      lambda v: logarithmic("perplexity per token (log scale)", v),
      transform=lambda values: np.exp(np.minimum(values, 700.0)),
    ),
    curves("Loss per byte", runs, "bits_per_byte", lambda v: linear("loss (bits per byte of text)", v)),
  ]
  about = (
    "Cross-entropy alone, without auxiliary losses; perplexity is its exponential. Runs with different vocabularies"
    " compare in bits per byte only."
  )
  return _section("Loss and perplexity", about, legend(runs, *_LINES), charts)


def load(runs: Sequence[Run]) -> Section | None:
  """Each expert's share over the steps, and which experts are dead."""
  routed = [run for run in runs if run.layers]
  dense = [run.name for run in runs if not run.layers]
  note = f"Dense, without routers: {', '.join(dense)}." if dense else ""
  if not routed:
    return Section("Routers", note, Html(""))
  about = (
    "An expert's load is its share of all assignments of a layer (in soft routing: of the tokens' weight), as recorded"
    " in training. Colours give it as a multiple of an even share, 1/E. An expert is called dead where its share is"
    f" less than {statistics.DEAD_SHARE:.0%} of an even one. {note}"
  )
  maps = by_layer(routed, _load_map)
  keys = tag("p", scale("dead", "an even share"), class_="legend")
  return Section("Load of the experts", about, join([keys, maps, _dead(runs, routed)]))


def dropped(runs: Sequence[Run]) -> Section | None:
  """The dropped share over the steps."""
  about = (
    "Token choice: the share of the assignments that tokens asked for and found no slot. Expert choice and soft"
    " routing, where tokens do not ask: the share of the tokens that no expert took."
  )
  charts = [
    curves(f"Dropped · {name}", runs, f"{name}/dropped", lambda v: linear("dropped share", v, low=0.0))
    for name in layer_names(runs)
  ]
  return _section("Dropped tokens", about, legend(runs, *_LINES, routed=True), charts)


def gate_entropy(runs: Sequence[Run]) -> Section | None:
  """The entropy of the router's probabilities over the steps."""
  about = (
    "The mean over tokens of the entropy of the router's probabilities over experts: ln E where it does not tell the"
    " experts apart, 0 where it is certain of one."
  )
  charts = [
    curves(
      f"Gate entropy · {name}",
      runs,
      f"{name}/gate_entropy",
      lambda v: linear("entropy (nats)", v, low=0.0),
      levels=_undecided,
    )
    for name in layer_names(runs)
  ]
  keys = legend(runs, *_LINES, "dotted: ln E, undecided", routed=True)
  return _section("Entropy of the gates", about, keys, charts)


def _section(title: str, about: str, keys: Html, charts: Iterable[Html | None]) -> Section | None:
  """None where nothing was recorded."""
  drawn = [figure(chart) for chart in charts if chart is not None]
  return Section(title, about, join([keys, tag("div", *drawn, class_="row")])) if drawn else None


def _undecided(run: Run) -> tuple[float, str] | None:
  experts = run.trained.config.model.num_experts
  return (math.log(experts), f"ln {experts}") if experts else None


def _load_map(run: Run, name: str, layer: Layer) -> Html | None:
  steps, loads = series(run, "train", f"{name}/load")
  if not len(steps):
    return None
  if np.abs(loads * loads.shape[1] - 1).max() < _VISIBLE:
    even = f"{name} · {run.name}: an even load, {number(100 / loads.shape[1])}% for every expert, in every record."
    return tag("p", even, class_="nothing")
  steps, loads = statistics.thin(steps, loads, _COLUMNS)
  columns = bins("training step", [number(round(step)) for step in steps], 6)
  return figure(heat_map(titled("Load", run, name), loads.T * loads.shape[1], columns, "expert"))


def _dead(runs: Sequence[Run], routed: Sequence[Run]) -> Html:
  head = ["layer", "run", "dead in validation text", "dead at the last training record", "largest load", "smallest"]
  rows = [
    [name, run_key(runs, run), *_dead_row(run, name, run.layers[name])]
    for name in layer_names(routed)
    for run in routed
    if name in run.layers
  ]
  return join([tag("h3", "Dead experts"), table(head, rows)])


def _dead_row(run: Run, name: str, layer: Layer) -> list[str]:
  _, loads = series(run, "train", f"{name}/load")
  last = _listed(loads[-1]) if len(loads) else "nothing recorded"
  multiples = layer.load * layer.experts
  extremes = [
    f"{multiples[expert]:.2f} × even (expert {expert})" for expert in (multiples.argmax(), multiples.argmin())
  ]
  return [_listed(layer.load), last, *extremes]


def _listed(load: np.ndarray) -> str:
  dead = statistics.dead_experts(load)
  return f"{len(dead)} of {len(load)}: {', '.join(map(str, dead))}" if dead else f"none of {len(load)}"
