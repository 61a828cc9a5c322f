"""The results of the benchmarks as lines of Markdown tables, for the terminal and the documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.markdown import markdown_table

STEP = ("model", "time, x dense", "tokens/s", "GFLOP", "layers with experts", "optimizer", "million parameters", "MB")
KINDS = ("all-to-all", "all-reduce", "all-gather", "other")
MESH = ("mesh, data x expert", "time, x the first", "wall seconds", *(f"{kind}, MB (planned)" for kind in KINDS))


def layer_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The sweep `ways` of `scripts.benchmarks.layer`, with one row for the dense twin, which is the same everywhere."""
  dense = next(row for row in rows if row["layer"] == "dense")
  shown = [{**dense, "at": "-"}, *(row for row in rows if row["layer"] != "dense")]
  cells = [
    (row["layer"], thousands(row["at"]), f"{row['ratio']:.2f}", gflop_text(row["gflop"]), f"{row['megabytes']:.0f}")
    for row in shown
  ]
  return markdown_table(("layer", "routing group", "time, x dense", "GFLOP", "MB"), cells)


def step_table(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The models of `scripts.benchmarks.step`."""
  return markdown_table(STEP, (_step_cells(name, row) for name, row in models.items()))


def _step_cells(name: str, row: Mapping[str, Any]) -> list[str]:
  return [
    name,
    f"{row['ratio']:.2f}",
    f"{row['tokens_per_second']:,.0f}",
    gflop_text(row["gflop"]),
    f"{row['layers']:.0%}",
    f"{row['update']:.0%}",
    f"{row['parameters'] / 1e6:.1f}",
    f"{row['megabytes']:.0f}",
  ]


def mesh_table(meshes: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The meshes of `scripts.benchmarks.mesh`."""
  return markdown_table(MESH, (_mesh_cells(name, row) for name, row in meshes.items()))


def _mesh_cells(name: str, row: Mapping[str, Any]) -> list[str]:
  sent = [f"{row['measured'][kind] / 1e6:.2f} ({row['planned'][kind] / 1e6:.2f})" for kind in KINDS]
  return [name, f"{row['ratio']:.2f}", f"{np.median(row['wall_seconds']):.2f}", *sent]


def thousands(value: int | str) -> str:
  """A number with a thousands separator; a word as it is."""
  return f"{value:,}" if isinstance(value, int) else value


def gflop_text(value: float | None) -> str:
  """A number with one decimal; a dash where it is unknown."""
  return "-" if value is None else f"{value:.1f}"
