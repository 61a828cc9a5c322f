"""The figures of studies, drawn from their results files alone."""

import dataclasses
import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe.figures import png_figure
from moe.studies.statistics import paired_difference

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_DENSE = "dense"
_SHOWN_FROM = 1 / 3  # of the steps: the first validations of a run would press all that differs into a line
_MOST_BANDS = 15  # with more arms nobody could tell them apart
_NOTE = (
  "Curves: mean over seeds; bands, if arms are few: from the least seed to the greatest. Differences: paired by seed,"
  " on the same validation text; dots: mean, with 95% t interval; hollow: the same models under the rule of their"
  " causal twins."
)


@dataclasses.dataclass(frozen=True)
class Difference:
  """By how much an arm is better than the reference: mean and 95% interval, in nats per token; nan for none."""

  arm: str
  mean: float
  low: float
  high: float


def reference_of(analysis: Mapping[str, Any]) -> str:
  """The arm that others are compared with: the dense one, else the baseline of the primary contrast, else the first."""
  arms = dict.fromkeys(one["tags"]["arm"] for one in _compared(analysis))
  wanted = [_DENSE, *(one["baseline"] for one in analysis["contrasts"][:1] if "baseline" in one), *arms]
  return next((arm for arm in wanted if arm in arms), "")


def differences(analysis: Mapping[str, Any], rule: str = "own") -> list[Difference]:
  """Each arm that has this rule against the reference under its own: the best first, those that diverged last.

  Pairs are of the seeds that both have; the loss of a run is the mean over its blocks.
  """
  reference, found = reference_of(analysis), []
  theirs = _final_losses(analysis, reference, "own")
  for arm in dict.fromkeys(one["tags"]["arm"] for one in _compared(analysis)):
    ours = _final_losses(analysis, arm, rule)
    if seeds := [seed for seed in ours if seed in theirs]:
      pairs = paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
      found.append(Difference(arm, pairs.mean, pairs.low, pairs.high))
  return sorted(found, key=lambda one: np.nan_to_num(one.mean, nan=-np.inf), reverse=True)


def draw_arms(analysis: Mapping[str, Any], path: pathlib.Path, loss_of: str = "token") -> bool:
  """Loss over steps by arm, and beside it each arm's final loss against the reference's.

  Args:
    analysis: of a study of language models.
    path: the PNG file to write; nothing is written if no arm can be compared with the reference.
    loss_of: what a loss is the mean over.
  """
  rows, twins = differences(analysis), {one.arm: one for one in differences(analysis, "causal")}
  if not rows:
    return False
  from matplotlib import colormaps
  from matplotlib.patches import ConnectionPatch

  reference, last = reference_of(analysis), len(rows) - 1
  # Arms are ordered by their differences: so are colours, from red to blue, and a line leads from curve to name.
  shades = 0.8 * colormaps["turbo_r"](np.linspace(0.08, 0.92, len(rows)))[:, :3]  # darker, for text
  colors: dict[str, Any] = {one.arm: tuple(shade) for one, shade in zip(rows, shades)}
  colors[reference] = "black"
  with png_figure(path, 10, 2.1 + 0.24 * max(len(rows), 8), dpi=100) as figure:
    curves, names, forest = figure.subplots(1, 3, width_ratios=(4.4, 2.3, 4))
    figure.suptitle(_title(analysis), fontsize=10)
    names.axis("off")
    names.set(xlim=(0, 1), ylim=(last + 0.6, -0.6))
    for place, one in enumerate(rows):
      end = _draw_curve(curves, analysis, one.arm, colors[one.arm], band=len(rows) <= _MOST_BANDS)
      lost = "" if math.isfinite(one.mean) else " (diverged)"
      names.text(0.12, place, one.arm + lost, color=colors[one.arm], fontsize=9, va="center")
      if one.arm in twins:
        _draw_row(forest, place + 0.25, twins[one.arm], colors[one.arm], hollow=True)
      if one.arm == reference:
        forest.plot(0, place, "o", color="black", markersize=5)
      else:
        _draw_row(forest, place, one, colors[one.arm])
      if end is not None:
        style = {"color": colors[one.arm], "linewidth": 0.6}
        figure.add_artist(ConnectionPatch(end, (0.1, place), "data", "data", axesA=curves, axesB=names, **style))
    _show_late(curves, analysis, reference)
    curves.set(xlabel="training step", ylabel=f"validation loss (nats per {loss_of})")
    curves.grid(alpha=0.3)
    forest.axvline(0, color="black", linewidth=1, linestyle="--")
    forest.set(ylim=(last + 0.6, -0.6), yticks=[], xlabel=f"better than {reference} by (nats per {loss_of})")
    forest.grid(alpha=0.3, axis="x")
    forest.locator_params(axis="x", nbins=5)
    figure.supxlabel("\n".join(textwrap.wrap(_NOTE, 140)), fontsize=7.5)
  return True


def draw_tasks(analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
  """The differences of the primary contrast by task, and their mean with its interval; False if there is none."""
  if not analysis["contrasts"]:
    return False
  first = analysis["contrasts"][0]
  tasks = sorted(first["differences"].items(), key=lambda item: item[1], reverse=True)
  rows = [Difference(task, 100 * value, math.nan, math.nan) for task, value in tasks]
  rows.append(Difference("mean, 95% interval", 100 * first["mean"], *(100 * bound for bound in first["interval"])))
  with png_figure(path, 7, 1.6 + 0.26 * len(rows), dpi=120) as figure:
    axes = figure.subplots()
    figure.suptitle(_title(analysis, 80), fontsize=10)
    for place, one in enumerate(rows):
      _draw_row(axes, place, one, "black" if place == len(tasks) else "tab:blue")
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [one.arm for one in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{first['arm']} better than {first['baseline']} by (points)")
    axes.grid(alpha=0.3, axis="x")
  return True


def draw_measures(analysis: Mapping[str, Any], measures: Mapping[str, str], path: pathlib.Path) -> bool:
  """A panel for each measure: the number of every seed by arm, and its mean; False if no arm has one.

  Args:
    analysis: whose `arms` have lists of numbers by measure.
    measures: the names of these, with what to write below their panels.
    path: the PNG file to write.
  """
  arms = analysis["arms"]
  if not arms:
    return False
  with png_figure(path, 10, 1.7 + 0.26 * len(arms), dpi=100) as figure:
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    figure.suptitle(_title(analysis), fontsize=10)
    for axes, (name, label) in zip(panels, measures.items()):
      for place, found in enumerate(arms.values()):
        values = np.array(found[name], float)
        axes.plot(values, np.full(len(values), place), "o", color="tab:blue", alpha=0.3, markersize=4)
        axes.plot(values.mean(), place, "|", color="black", markersize=12, markeredgewidth=2)
      axes.set(xlabel="\n".join(textwrap.wrap(label, 26)), ylim=(len(arms) - 0.4, -0.6))
      axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(arms)), arms)
    figure.supxlabel("Dots: seeds; bars: their mean.", fontsize=7.5)
  return True


def draw_stages(
  analysis: Mapping[str, Any], losses: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], path: pathlib.Path
) -> bool:
  """A panel for each of N texts: the loss on it after each stage; False if there are no arms.

  Args:
    analysis: of the study.
    losses: by arm, for each seed `[stages, N]`, in nats per token; a single stage is drawn as a line across.
    names: of the N texts, which are also those of the stages.
    path: the PNG file to write.
  """
  if not losses:
    return False
  with png_figure(path, 10, 3.6, dpi=100) as figure:
    panels = figure.subplots(1, len(names), sharex=True, squeeze=False)[0]
    figure.suptitle(_title(analysis), fontsize=10)
    for text, axes in enumerate(panels):
      for number, (arm, seeds) in enumerate(losses.items()):
        curves = np.array(seeds, float)[:, :, text]  # [seeds, stages]
        if curves.shape[1] == 1:
          axes.axhline(curves.mean(), color="black", linestyle="--", linewidth=1, label=arm)
        else:
          axes.fill_between(
            range(len(names)), curves.min(0), curves.max(0), color=f"C{number}", alpha=0.15, linewidth=0
          )
          axes.plot(curves.mean(0), "o-", color=f"C{number}", label=arm, markersize=4)
      axes.axvline(text, color="gray", linestyle=":", linewidth=1)
      axes.set(title=f"loss on {names[text]}", xlabel="after the stage")
      axes.set_xticks(range(len(names)), names)
      axes.grid(alpha=0.3)
    panels[0].set_ylabel("nats per token")
    panels[-1].legend(fontsize=8)
    figure.supxlabel(
      "Means over seeds; bands: from the least seed to the greatest; dotted: a text's own stage.", fontsize=7.5
    )
  return True


def _draw_curve(
  axes: "Axes", analysis: Mapping[str, Any], arm: str, color: Any, *, band: bool
) -> tuple[float, float] | None:
  """The mean curve of an arm; returns its end, if that is finite."""
  steps, losses = _curves(analysis, arm)
  mean = losses.mean(0)
  style = {"linestyle": "--", "linewidth": 1.6, "zorder": 3} if color == "black" else {"linewidth": 1.1}
  axes.plot(steps, mean, color=color, **style)
  if band:
    axes.fill_between(steps, losses.min(0), losses.max(0), color=color, alpha=0.12, linewidth=0)
  return (float(steps[-1]), float(mean[-1])) if math.isfinite(mean[-1]) else None


def _draw_row(axes: "Axes", y: float, one: Difference, color: Any, *, hollow: bool = False) -> None:
  """A mean and its interval; of neither what is not finite."""
  axes.plot([one.low, one.high], [y, y], color=color, linewidth=1 if hollow else 1.8)
  face = "white" if hollow else color
  axes.plot(one.mean, y, "o", color=color, markerfacecolor=face, markersize=4 if hollow else 5)


def _show_late(axes: "Axes", analysis: Mapping[str, Any], reference: str) -> None:
  """Leaves out the first part of the reference's curve, and all losses above the rest of it."""
  steps, losses = _curves(analysis, reference)
  late = steps >= _SHOWN_FROM * steps[-1]
  arms = dict.fromkeys(one["tags"]["arm"] for one in _compared(analysis))
  high = np.nanmax(losses[:, late])
  low = min(np.nanmin(_curves(analysis, arm)[1], initial=high) for arm in arms)
  axes.set_ylim(low - 0.03 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3)
  axes.set_xlim(left=0.95 * steps[late][0])


def _title(analysis: Mapping[str, Any], width: int = 110) -> str:
  return "\n".join(textwrap.wrap(f"{analysis['study']} ({analysis['budget']}): {analysis['claim']}", width))


def _compared(analysis: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The runs of the comparison: those of tuning have no blocks, and measurements no curve."""
  return [one for one in analysis["results"] if one["curve"] and one["blocks"]]


def _final_losses(analysis: Mapping[str, Any], arm: str, rule: str) -> dict[int, float]:
  """The mean over blocks, by seed; nan if one is not finite."""
  runs = [one for one in _compared(analysis) if one["tags"]["arm"] == arm and rule in one["blocks"]]
  return {one["tags"]["seed"]: float(np.mean(np.array(one["blocks"][rule], float))) for one in runs}


def _curves(analysis: Mapping[str, Any], arm: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps `[V]` and losses `[S, V]` of an arm's validations."""
  curves: Sequence[Any] = [one["curve"] for one in _compared(analysis) if one["tags"]["arm"] == arm]
  losses = np.array([[point["loss"] for point in curve] for curve in curves], float)
  return np.array([point["step"] for point in curves[0]]), losses
