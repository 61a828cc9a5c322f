"""How much routing changes from checkpoint to checkpoint."""

from collections.abc import Sequence

import numpy as np

from moe.report.axes import linear_axis
from moe.report.chart import Chart
from moe.report.section import Grid, Section, charts_section, layer_names, run_color, run_keys, step_axis
from moe.report.types import Run


def churn_section(runs: Sequence[Run]) -> Section | None:
  """The share of the assignments that changed, per layer."""
  about = (
    "Of the (token, expert) assignments that either of two consecutive kept checkpoints makes on the same validation"
    " tokens, the share that only one of them makes (Jaccard distance): 0 if nothing changed, 1 if everything did."
    " Dotted: the distance between two unrelated routings of the same sizes."
  )
  charts = [chart for name in layer_names(runs) if (chart := _churn_chart(runs, name)) is not None]
  legend = run_keys(runs, "dotted: unrelated routings", routed=True)
  return charts_section("Churn between checkpoints", about, legend, Grid(charts), _notes(runs))


def _churn_chart(runs: Sequence[Run], name: str) -> Chart | None:
  moved = [(run, run.churn[name]) for run in runs if run.churn.get(name)]
  if not moved:
    return None
  chart = Chart(f"Churn · {name}", step_axis(runs), linear_axis("changed share of assignments", [], low=0.0, high=1.0))
  for run, changes in moved:
    color = run_color(runs, run)
    steps, distances = [change.step for change in changes], [change.distance for change in changes]
    chart.level(float(np.mean([change.random for change in changes])), color, f"{run.name}: unrelated routings")
    chart.line(steps, distances, color)
    tips = [f"{run.label}, up to step {step:,}: {distance:.1%}" for step, distance in zip(steps, distances)]
    chart.points(steps, distances, color, tips)
  return chart


def _notes(runs: Sequence[Run]) -> list[str]:
  """Why a run has no churn, or only a part of it."""
  single = [run.name for run in runs if run.layers and not any(run.churn.values())]
  notes = [f"{name}: only one checkpoint; config.train.keep sets how many a run keeps." for name in single]
  return notes + [
    f"{run.name}: checkpoints {run.unreadable} are damaged and left out." for run in runs if run.unreadable
  ]
