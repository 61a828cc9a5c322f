"""Plans to read: lines for one, a table of several, a figure of where their time goes."""

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moe.figures import png_figure
from moe.markdown import markdown_table
from moe.planning.account import Plan
from moe.planning.costs import KINDS
from moe.planning.topology import GIB

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def config_name(one: list[str], given: list[list[str]]) -> str:
  """The name of a config: that of its file, or the path if another file has the same name.

  With its overrides if the file is given more than once.

  Args:
    one: `--config=FILE` and its overrides.
    given: all configs of the command line, each as `one`.
  """
  files = [pathlib.Path(config.partition("=")[2]) for config, *_ in given]
  file = pathlib.Path(one[0].partition("=")[2])
  name = file.stem if len({other for other in files if other.stem == file.stem}) == 1 else str(file)
  overrides = one[1:] if files.count(file) > 1 else []
  return " ".join([name, *(override.removeprefix("--config.") for override in overrides)])


def plan_lines(name: str, plan: Plan, tokens: float | None) -> list[str]:
  """Everything about one config.

  Args:
    name: of the config.
    plan: its plan.
    tokens: to train on in total; None for those of the config's run.
  """
  axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
  memory = {field: size / GIB for field, size in plan.memory.items()}
  activated, least = plan.forward_flops_per_token / 1e9, "" if plan.forward_is_exact else "at least "
  return [
    f"{name} on {plan.slice}, {plan.chips} chips: {axes}; compiled in {plan.compile:.0f} s",
    f"  memory per chip    {memory['peak']:.2f} of {plan.hbm / GIB:.2f} GiB: arguments {memory['arguments']:.2f},"
    f" outputs {memory['outputs']:.2f} ({memory['aliased']:.2f} reuse the arguments),"
    f" temporaries {memory['temporaries']:.2f}, not all at once",
    f"  work per chip      {plan.flops / 1e12:.2f} TFLOP in products, {plan.bytes / 1e9:.1f} GB to and from memory",
    f"  activated          {least}{activated:.3f} GFLOP per token forward, {3 * activated:.3f} with the backward pass",
    f"  time per step      {_time(plan.seconds)}, {_time(plan.least)} with every asynchronous collective hidden;"
    f" {plan.utilization:.1%} of the peak are activated FLOPs",
    f"  by kind            {_shares(plan.kinds, plan.seconds)}",
    f"  by part            {_shares(plan.parts, plan.seconds)}; MoE layers {plan.moe_share:.1%}",
    *(f"  {_sent(entry)}" for entry in plan.collectives),
    f"  estimated          {_time(plan.estimated)} by the compiler",
    *(f"  not estimated      {_missing(kind, entry)}" for kind, entry in plan.not_estimated.items()),
    f"  overlapped         {plan.prefetch['bytes'] / 1e9:.1f} GB copied between memories,"
    f" {_time(plan.prefetch['seconds'])} at the memory's bandwidth",
    *_unknown(plan),
    f"  {plan.tokens_per_second:,.0f} tokens per second,"
    f" {plan.days(tokens):.1f} days for {tokens or plan.run_tokens:.3g} tokens",
  ]


def plan_table(plans: dict[str, Plan], tokens: float | None) -> list[str]:
  """A Markdown table with one row per config."""
  last = "days for the run" if tokens is None else f"days for {tokens:.3g} tokens"
  head = ["config", "slice", "mesh", "GiB per chip", "ms per step", *(f"{kind} %" for kind in KINDS), "MoE layers %"]

  def cells(name: str, plan: Plan) -> list[str]:
    return [
      f"`{name}`",
      plan.slice,
      " x ".join(map(str, plan.mesh.values())),
      memory_of(plan),
      f"{plan.seconds * 1e3:.0f}",
      *(f"{plan.kinds[kind] / plan.seconds:.0%}".rstrip("%") for kind in KINDS),
      f"{plan.moe_share:.0%}".rstrip("%"),
      f"{'' if plan.forward_is_exact else '> '}{plan.forward_flops_per_token / 1e9:.2f}",
      f"{plan.tokens_per_second:,.0f}",
      f"{plan.days(tokens):.1f}",
    ]

  rows = (cells(name, plan) for name, plan in plans.items())
  return markdown_table([*head, "GFLOP per token", "tokens/s", last], rows)


def memory_of(plan: Plan) -> str:
  """GiB of a chip that a step uses at its peak, and that are available."""
  return f"{plan.memory['peak'] / GIB:.1f} of {plan.hbm / GIB:.1f}"


def draw(plans: dict[str, Plan], path: pathlib.Path) -> None:
  """One bar per config: milliseconds of a step by kind of instruction, and below it by part of the model."""
  parts = list(dict.fromkeys(part for plan in plans.values() for part in plan.parts))
  with png_figure(path, 10, 3 + 0.6 * len(plans)) as figure:
    above, below = figure.subplots(2, 1)
    _bars(above, {name: plan.kinds for name, plan in plans.items()}, KINDS, "by kind of instruction")
    _bars(below, {name: plan.parts for name, plan in plans.items()}, parts, "by part of the model")


def _bars(axes: "Axes", times: dict[str, dict[str, float]], names: Iterable[str], title: str) -> None:
  ends = [0.0] * len(times)
  for name in names:
    widths = [1e3 * one.get(name, 0.0) for one in times.values()]
    axes.barh(list(times), widths, left=ends, label=name, height=0.6)
    ends = [end + width for end, width in zip(ends, widths)]
  axes.set(title=title, xlabel="milliseconds per step")
  axes.invert_yaxis()
  axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _time(seconds: float) -> str:
  return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _shares(times: dict[str, float], total: float) -> str:
  return ", ".join(f"{name} {time / total:.1%}" for name, time in times.items())


def _sent(entry: dict[str, Any]) -> str:
  hidden = f", {_time(entry['hidden'])} asynchronous" if entry["hidden"] else ""
  return (
    f"{entry['kind']:18} along {entry['axes']}: {entry['runs']} runs, {entry['bytes'] / 1e6:,.1f} MB,"
    f" {_time(entry['seconds'])} by the links' bandwidth{hidden}"
  )


def _missing(kind: str, entry: dict[str, float]) -> str:
  return (
    f"{entry['instructions']} {kind} of {entry['bytes'] / 1e6:,.1f} MB, counted as {_time(entry['seconds'])}"
    " at the memory's bandwidth or the peak"
  )


def _unknown(plan: Plan) -> list[str]:
  if not plan.unknown_loops:
    return []
  return [f"  loops of unknown length, each counted as one trip: {plan.unknown_loops}, {_time(plan.unknown)} in total"]
