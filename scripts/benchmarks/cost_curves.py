"""The picture of a layer's cost: over group size, number of experts and number of tokens."""

import pathlib
from collections.abc import Sequence
from typing import Any

PANELS = {"groups": "tokens of a routing group", "experts": "experts", "tokens": "tokens"}


def draw_cost_curves(rows: Sequence[dict[str, Any]], figure: pathlib.Path) -> None:
  """Draws time next to a dense layer of equal activated FLOPs into a PNG, one panel a sweep.

  It is made anew of `rows` each time, so it replaces an older picture.

  Args:
    rows: of `scripts/benchmarks/layer.py`: `sweep`, `at`, `layer`, `ratio`.
    figure: the file to write.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  canvas = FigureCanvasAgg(Figure(figsize=(10, 3.4), layout="constrained"))
  panels = canvas.figure.subplots(1, len(PANELS), sharey=True)
  names = list(dict.fromkeys(row["layer"] for row in rows if row["sweep"] in PANELS and row["layer"] != "dense"))
  colors = {name: f"C{place}" for place, name in enumerate(names)}
  for axes, (sweep, label) in zip(panels, PANELS.items()):
    chosen = [row for row in rows if row["sweep"] == sweep]
    places = sorted({row["at"] for row in chosen})
    for name in names:
      curve = [(row["at"], row["ratio"]) for row in chosen if row["layer"] == name]
      if curve:
        axes.plot(*zip(*curve), color=colors[name], marker="o", markersize=4, label=name)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="dense")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.set(xlabel=label)
    axes.grid(alpha=0.3)
  panels[0].set(ylabel="time, x dense", ylim=(0, None))
  handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())}
  canvas.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
  figure.parent.mkdir(parents=True, exist_ok=True)
  canvas.figure.savefig(figure, format="png", dpi=120)
