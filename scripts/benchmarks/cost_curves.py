"""The figure of what a layer costs over group size, number of experts and number of tokens."""

import pathlib
from collections.abc import Sequence
from typing import Any

from moe.figures import png_figure

PANELS = {"groups": "tokens per routing group", "experts": "experts", "tokens": "tokens"}


def draw_cost_curves(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws time relative to a dense layer of equal activated FLOPs, one panel per sweep, as a PNG.

  Args:
    rows: of `scripts.benchmarks.layer`: `sweep`, `at`, `layer`, `ratio`.
    path: the file to write; an older one is replaced.
  """
  names = list(dict.fromkeys(row["layer"] for row in rows if row["sweep"] in PANELS and row["layer"] != "dense"))
  path.parent.mkdir(parents=True, exist_ok=True)
  with png_figure(path, 10, 3.4, dpi=120) as figure:
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (sweep, label) in zip(panels, PANELS.items()):
      chosen = [row for row in rows if row["sweep"] == sweep]
      for index, name in enumerate(names):
        curve = [(row["at"], row["ratio"]) for row in chosen if row["layer"] == name]
        if curve:
          axes.plot(*zip(*curve), color=f"C{index}", marker="o", markersize=4, label=name)
      axes.axhline(1, color="black", linestyle="--", linewidth=1, label="dense")
      ticks = sorted({row["at"] for row in chosen})
      axes.set_xscale("log", base=2)
      axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
      axes.minorticks_off()
      axes.set(xlabel=label)
      axes.grid(alpha=0.3)
    panels[0].set(ylabel="time, x dense", ylim=(0, None))
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
