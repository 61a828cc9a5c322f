"""What the page's sections are made of: legends, a grid with a cell for each layer, and axes that charts share."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moe.report.axes import Axis, linear_axis
from moe.report.chart import Chart
from moe.report.seeds import by_config
from moe.report.types import Layer, Run

# Okabe and Ito's colors, which every kind of color vision can tell apart; black and grey are for references.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
REFERENCE_COLOR = "#3b4250"


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page.

  Attributes:
    title: its heading.
    about: a paragraph that defines what is shown.
    template: the file of `templates/` that lays out `data`; None for a section that is only a paragraph.
    data: plain values, `Key`s, `Grid`s and `Chart`s, never markup.
  """

  title: str
  about: str
  template: str | None = None
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def anchor(self) -> str:
    return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Key:
  """An entry of a legend: a color and its meaning, or a note without a color; `leaks` makes it an alarm."""

  text: str
  color: str | None = None
  leaks: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
  """Cells in rows of `columns`; if that is 1, in rows as long as fit the window. None is an empty cell."""

  cells: Sequence[Any]
  columns: int = 1


def charts_section(
  title: str, about: str, legend: Sequence[Key], charts: Grid, notes: Sequence[str] = ()
) -> Section | None:
  """A section of charts, or of texts where there is nothing to draw; None without any chart and any note."""
  if not notes and not any(isinstance(cell, Chart) for cell in charts.cells):
    return None
  return Section(title, about, "charts.html", {"legend": legend, "charts": charts, "notes": notes})


def run_color(runs: Sequence[Run], run: Run) -> str:
  """The run's color in all charts."""
  return COLORS[runs.index(run) % len(COLORS)]


def run_key(runs: Sequence[Run], run: Run) -> Key:
  """The run's entry in a legend."""
  return Key(run.label, run_color(runs, run), bool(run.leaks))


def run_keys(runs: Sequence[Run], *notes: str, routed: bool = False) -> list[Key]:
  """A legend of the runs (with `routed` only those with routers), followed by notes on the kinds of lines."""
  return [run_key(runs, run) for run in runs if run.layers or not routed] + [Key(note) for note in notes]


def seeds_keys(runs: Sequence[Run], *notes: str, routed: bool = False) -> list[Key]:
  """As `run_keys`, with one entry for runs that differ only in seeds."""
  groups = [group for group in by_config(runs) if group.runs[0].layers or not routed]
  keys = [
    Key(
      f"{group.name} ({group.runs[0].leaks})" if group.runs[0].leaks else group.name,
      run_color(runs, group.runs[0]),
      bool(group.runs[0].leaks),
    )
    for group in groups
  ]
  spread = ["several seeds: mean, and from the lowest to the highest"] if any(len(g.runs) > 1 for g in groups) else []
  return keys + [Key(note) for note in (*notes, *spread)]


def layer_names(runs: Sequence[Run]) -> list[str]:
  """The MoE layers of all runs, the encoder's first."""
  found = {name for run in runs for name in run.layers}
  return sorted(found, key=lambda name: (name.split("/")[0] != "encoder", int(name.rsplit("_", 1)[1])))


def layer_grid(runs: Sequence[Run], make: Callable[[Run, str, Layer], Any]) -> Grid:
  """What `make` returns for every layer of every run with routers: one row per layer, one column per run.

  A row in which it returned only None is left out.
  """
  routed = [run for run in runs if run.layers]
  rows = [
    [make(run, name, run.layers[name]) if name in run.layers else None for run in routed] for name in layer_names(runs)
  ]
  return Grid([cell for row in rows if any(cell is not None for cell in row) for cell in row], len(routed))


def layer_title(what: str, run: Run, layer: str) -> str:
  """The title of a chart of one layer of one run."""
  return f"{what} · {layer} · {run.name}"


def step_axis(runs: Sequence[Run]) -> Axis:
  """From step 0 to the last step of any run, so that all charts of a page can be compared."""
  last = max(step for run in runs for step in (run.trained.step, *(record["step"] for record in run.records)))
  axis = linear_axis("training step", [], low=0.0, high=float(last))
  return axis if last < 10_000 else dataclasses.replace(axis, ticks=axis.ticks[::2])  # long numbers need room
