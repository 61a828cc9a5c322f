"""The patches that each expert reads, drawn on the pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe.report.section import Grid, Section, run_key
from moe.report.types import PictureMaps, Run

_MOST_EXPERTS = 16
_SHADE = 0.85  # of a patch that an expert does not read


def pictures_section(runs: Sequence[Run]) -> Section | None:
  """A panel for every run on pictures with routers, in which a layer can be selected."""
  about = (
    "The first validation pictures, once for each expert (the most loaded ones, if there are many): the patches that it"
    " takes are bright. In Soft MoE, which mixes all patches, a patch is the brighter the more it weighs in the"
    " expert's slots (dispatch), relative to the one that weighs most. Hover over a patch for its place."
  )
  panels = [
    {"key": run_key(runs, run), "layers": {name: _layer(run.maps, name) for name in run.maps.layers}}
    for run in runs
    if run.maps is not None
  ]
  data = {"panels": Grid(panels, len(panels))}
  return Section("Patches of each expert", about, "pictures.html", data) if panels else None


def _layer(maps: PictureMaps, name: str) -> dict[str, Any]:
  """The experts that are shown, and for each picture its overlay for each of them."""
  levels = maps.layers[name]  # [N, side * side, E]
  experts = np.sort(np.argsort(-levels.sum((0, 1)), kind="stable")[:_MOST_EXPERTS])
  rows = [
    {"label": label, "image": image, "maps": [_shades(one[:, expert], maps.side) for expert in experts]}
    for label, image, one in zip(maps.labels, maps.images, levels)
  ]
  return {"experts": experts.tolist(), "side": maps.side, "rows": rows}


def _shades(levels: np.ndarray, side: int) -> list[dict[str, Any]]:
  """For each patch that is not at its brightest: its place, and how dark it is."""
  return [
    {
      "x": i % side,
      "y": i // side,
      "opacity": f"{_SHADE * (1 - level):.2f}",
      "tip": f"patch {i // side},{i % side}: {level:.2f}",
    }
    for i, level in enumerate(levels.tolist())
  ]
