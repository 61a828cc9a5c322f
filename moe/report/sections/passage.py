"""A passage of validation text, each token colored by its number of experts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe.report.section import Grid, Section, run_key
from moe.report.token_texts import printable
from moe.report.types import Layer, Run

_MOST_TOKENS = 320
_MOST_COUNTED = 5


def passage_section(runs: Sequence[Run]) -> Section | None:
  """A panel for every run with routers, in which a layer can be selected."""
  about = (
    f"The first {_MOST_TOKENS} validation tokens that each stack reads, one box per example; a decoder reads its"
    " targets one position later, after ⟨start⟩. Hover over a token to see its experts and their weights."
  )
  legend = [f"{count} expert{'' if count == 1 else 's'}" for count in range(_MOST_COUNTED)]
  panels = [
    {"key": run_key(runs, run), "layers": {name: _examples(run, layer) for name, layer in run.layers.items()}}
    for run in runs
    if run.layers and run.maps is None  # pictures have a section of their own
  ]
  data = {"legend": [*legend, f"{_MOST_COUNTED} or more experts"], "panels": Grid(panels, len(panels))}
  return Section("A passage, token by token", about, "passage.html", data) if panels else None


def _examples(run: Run, layer: Layer) -> list[list[dict[str, Any]]]:
  starts = np.flatnonzero(layer.positions[:_MOST_TOKENS] == 0).tolist()
  ends = [*starts[1:], min(_MOST_TOKENS, len(layer.ids))]
  return [[_token(run, layer, index) for index in range(first, end)] for first, end in zip(starts, ends)]


def _token(run: Run, layer: Layer, index: int) -> dict[str, Any]:
  text = printable(run.texts[int(layer.ids[index])]).replace("\n", "↵\n")
  weights = layer.weights[index]
  experts = sorted(np.flatnonzero(layer.chosen[index]).tolist(), key=lambda expert: -weights[expert])
  tip = ", ".join(f"expert {expert} ({weights[expert]:.2f})" for expert in experts) or "no expert"
  return {"text": text, "experts": min(len(experts), _MOST_COUNTED), "tip": tip}
