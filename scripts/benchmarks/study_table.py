"""The plans of one study as a Markdown table."""

from collections.abc import Mapping
from typing import Any

from moe.markdown import markdown_table
from moe.planning.account import Plan
from moe.planning.page import memory_of
from moe.planning.parts import MOE_PARTS

_HEAD = (
  *("", "ms per step", "x the first", "MoE layers, ms", *(f"{part}, ms" for part in MOE_PARTS)),
  *("collectives, ms", "MFU", "GiB per chip", "GFLOP per token"),
)


def study_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Lines of the table of a results file of `scripts.benchmarks.plans`; ratios are to its first plan."""
  plans = {name: Plan(**one["plan"]) if "plan" in one else one["why"] for name, one in found.items()}
  first = next(plan for plan in plans.values() if isinstance(plan, Plan))
  empty = [""] * (len(_HEAD) - 2)
  rows = ([name, *(_cells(plan, first) if isinstance(plan, Plan) else [plan, *empty])] for name, plan in plans.items())
  return markdown_table(_HEAD, rows)


def _cells(plan: Plan, first: Plan) -> list[str]:
  return [
    f"{1e3 * plan.seconds:.0f}",
    f"{plan.seconds / first.seconds:.2f}",
    f"{1e3 * plan.moe_share * plan.seconds:.0f}",
    *(f"{1e3 * plan.parts.get(part, 0.0):.0f}" for part in MOE_PARTS),
    f"{1e3 * plan.kinds['collective']:.0f}",
    f"{plan.utilization:.1%}",
    memory_of(plan),
    f"{plan.forward_flops_per_token / 1e9:.2f}",
  ]
