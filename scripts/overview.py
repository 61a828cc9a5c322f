"""What the README says at a glance, from results files: the figure at its top, and the findings below it."""

import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from moe.figures import png_figure
from moe.studies.reporting.figure import Difference, differences, reference_of

FIGURE = "docs/overview.png"  # from the repository's root
_LAYERS = ("expert choice", "top-2", "expert choice, one-hot masks")


def caption(study: Mapping[str, Any]) -> str:
  """The figure, and what it shows.

  Args:
    study: the analysis of `convergence`.
  """
  seeds = {one["tags"]["seed"] for one in study["results"] if one["curve"] and one["blocks"]}
  flops = [arm["flops"] for arm in study["arms"].values()]
  text = f"""Left: {len(differences(study))} methods of measured FLOPs that are equal to within
    {math.ceil(100 * (max(flops) / min(flops) - 1))}%, tuned alike, with {len(seeds)} paired seeds (study
    `{study["study"]}`, budget `{study["budget"]}`). A hollow dot is the same model, judged by a rule that does not see
    later tokens. Right: on a CPU a layer costs about what its matrix products cost, however many tokens one routing
    decision is made over."""
  return "\n".join([f"![Losses at equal FLOPs, and time beside a dense layer]({FIGURE})", "", _wrapped(text)])


def findings(layer: Mapping[str, Any], leaks: Mapping[str, Any], plans: Mapping[str, Any]) -> str:
  """What benchmarks found, in three sentences.

  Args:
    layer: of `scripts.benchmarks.layer`.
    leaks: of `scripts.benchmarks.leaks`.
    plans: the study `8b` of `scripts.benchmarks.plans`.
  """
  seconds = {name: one["plan"]["seconds"] for name, one in plans.items()}
  ours = seconds["expert choice, capacity 2"]
  taken = {name: ours / seconds[f"GLaM top-2, capacity {name}"] for name in ("2", "2.5", "4")}
  nats = {name: one["nats"] for name, one in leaks["routers"].items()}
  causal = max(abs(nats[name]) for name in ("position_grouped", "prefix_rank", "threshold"))
  ratios = [one["ratio"] for one in layer["rows"] if one["sweep"] == "ways" and one["layer"] in _LAYERS[:2]]
  texts = [
    f"""**The 20% shorter step of expert choice is about capacity.** Its step takes {taken["2"]:.2f} times as long as
      that of GLaM's top-2 at equal capacity, {taken["2.5"]:.2f} times at GLaM's own capacity factor and
      {taken["4"]:.2f} times at capacity 4, by the TPU compiler's own estimates for the paper's models of 8B and 64
      experts ([table](docs/benchmarks.md#the-papers-8b-models)).""",
    f"""**Expert choice leaks the future into a decoder.** In untrained routers on random tokens
      (`python -m scripts.benchmarks.leaks`), a token's experts tell {nats["expert_choice, pool of 4"]:.2f} nats about
      the next token for a pool of 4 tokens and {nats["expert_choice, pool of 64"]:.3f} for 64; the causal forms read at
      most {causal:.5f}. A decoder refuses it unless you insist, and then every metric says so
      ([causality](docs/causality.md)).""",
    f"""**A layer costs about what its matrix products cost.** Expert choice and top-2 take {min(ratios):.2f} to
      {max(ratios):.2f} times a dense layer of equal activated FLOPs on a CPU, at any group size
      ([tables](docs/benchmarks.md)).""",
  ]
  return "\n".join(_wrapped(text, "- ") for text in texts)


def draw(study: Mapping[str, Any], layer: Mapping[str, Any], path: pathlib.Path) -> None:
  """Draws the figure.

  Args:
    study: the analysis of `convergence`.
    layer: of `scripts.benchmarks.layer`.
    path: the PNG file to write; an older one is replaced.
  """
  with png_figure(path, 10, 4.2, dpi=110) as figure:
    losses, costs = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_losses(losses, study)
    _draw_costs(costs, layer["rows"])


def _draw_losses(axes: Any, study: Mapping[str, Any]) -> None:
  """Each method's loss against the dense one's; the order is that of the losses of true language models."""
  own = {one.arm: one for one in differences(study)}
  twins = {one.arm: one for one in differences(study, "causal")}
  reference = reference_of(study)
  arms = sorted(own, key=lambda arm: twins.get(arm, own[arm]).mean)
  for place, arm in enumerate(arms):
    color = "black" if arm == reference else "tab:red" if arm in twins else "tab:blue"
    _draw_dot(axes, place, own[arm], color, "full" if arm not in twins else "seen")
    if arm in twins:
      axes.plot([twins[arm].mean, own[arm].mean], [place, place], color=color, linewidth=0.8, linestyle=":")
      _draw_dot(axes, place, twins[arm], color, "hollow")
  axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms], fontsize=9)
  axes.axvline(0, color="black", linewidth=1, linestyle="--")
  axes.set(xlabel=f"better than {reference} by (nats per token), 95% interval")
  axes.set_title("Which router is better, at equal FLOPs", fontsize=10)
  for label, style in {
    "a causal language model": {"color": "tab:blue"},
    "sees later tokens": {"color": "tab:red"},
    "the same without seeing them": {"color": "tab:red", "markerfacecolor": "white"},
  }.items():
    axes.plot([], [], "o", markersize=5, label=label, **style)
  axes.legend(fontsize=8, frameon=False)
  axes.grid(alpha=0.3, axis="x")


def _draw_dot(axes: Any, y: float, one: Difference, color: str, kind: str) -> None:
  face = "white" if kind == "hollow" else color
  axes.plot([one.low, one.high], [y, y], color=color, linewidth=1 if kind == "hollow" else 1.8)
  axes.plot(one.mean, y, "o", color=color, markerfacecolor=face, markersize=5)


def _draw_costs(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
  """Time over the size of the routing group."""
  rows = [row for row in rows if row["sweep"] == "groups"]
  for name in _LAYERS:
    curve = [(row["at"], row["ratio"]) for row in rows if row["layer"] == name]
    axes.plot(*zip(*curve), marker="o", markersize=4, label=name)
  axes.axhline(1, color="black", linestyle="--", linewidth=1, label="dense, of equal FLOPs")
  ticks = sorted({row["at"] for row in rows})
  axes.set_xscale("log", base=2)
  axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=9)
  axes.minorticks_off()
  axes.set(xlabel="tokens that one routing decision is made over", ylabel="time, x dense", ylim=(0, None))
  axes.set_title("What a layer costs on a CPU", fontsize=10)
  axes.legend(fontsize=8, frameon=False, loc="lower right")
  axes.grid(alpha=0.3)


def _wrapped(text: str, item: str = "") -> str:
  indent = " " * len(item)
  whole = " ".join(text.split())
  return textwrap.fill(
    whole, 120, initial_indent=item, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
  )
