"""What a Mixture-of-Experts layer costs relative to a dense one: time, FLOPs and memory of forward + backward.

    python -m scripts.benchmarks.layer --sweep ways groups experts tokens --results results/layer.json
    python -m scripts.benchmarks.layer --sweep routers [--only NAME ...] --results results/routers.json

Sweeps, with the default options:

  ways     dispatch by index into slots, dropless, soft, by masks; 4,096 tokens in groups of 256 and more
  groups   65,536 tokens in groups of 256 to 65,536; masks as long as they fit into 1 GiB
  experts  8 to 512 experts on 4,096 tokens: the same FLOPs, more weights
  tokens   1,024 to 65,536 tokens in groups of 1,024
  routers  every router with its default options, and its decision alone

Layers run in training mode and compute everything that a training step needs of them; Soft MoE has as many slots as
tokens. The dense twin is a flattened two-matrix GELU network, as wide as the experts of a token put side by side:
those that the router's options ask for (the budget), and those that are computed, empty slots included (the work). A
router whose slots are mostly empty looks cheap by its work and expensive by its budget. Programs to be compared take
turns in one process. Ratios are of medians: of CPU time on a CPU, where other processes may run, and of wall time
elsewhere. FLOPs and megabytes are XLA's analysis of the compiled program; megabytes are its temporary buffers,
without arguments and results. XLA counts the body of a loop once and does not look into kernels; a dropless layer is
one or the other, so its FLOPs are not given.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from moe.checks.layer_programs import LayerCase, LayerPrograms, Work, measured_work
from moe.checks.timing import dense_program, measure_in_turns
from moe.commands import Parser, run_script
from moe.config import build
from moe.markdown import markdown_table
from moe.parallel.platform import start_platform
from moe.routing import RaggedRouting, RouterConfig
from scripts.benchmarks.arguments import absent_path, positive_int, run_settings, write_results
from scripts.benchmarks.cost_curves import PANELS, draw_cost_curves
from scripts.benchmarks.cost_tables import gflop_text, thousands

SWEEPS = ("ways", "groups", "experts", "tokens", "routers")

SMALLEST_GROUP, GROUP, SEQUENCE, FEWEST_EXPERTS = 256, 1024, 512, 8
BY_SLOTS = ("expert choice", "top-{k}")
MASKS, DROPLESS = "expert choice, one-hot masks", "top-{k} dropless"
MOST_MASK_BYTES = 2**30

# Layers by name, which are measured side by side.
Cases = dict[str, LayerCase]


def sweep_points(sweep: str, arguments: argparse.Namespace) -> Iterator[tuple[int | str, Cases]]:
  """The points of a sweep, each with the layers that are compared there."""
  tokens, most, experts = arguments.tokens, arguments.most_tokens, arguments.experts
  match sweep:
    case "ways":
      for group in _fourfold(SMALLEST_GROUP, tokens):
        kinds = (*BY_SLOTS, "Soft MoE", *_masks(tokens, group, arguments.top_k))
        yield group, _cases(kinds, tokens, group, experts, arguments)
      yield "any", _cases([DROPLESS], tokens, min(GROUP, tokens), experts, arguments)
    case "groups":
      for group in _fourfold(SMALLEST_GROUP, most):
        kinds = (*BY_SLOTS, *_masks(most, group, arguments.top_k))
        yield group, _cases(kinds, most, group, experts, arguments)
    case "experts":
      for number in _fourfold(FEWEST_EXPERTS, arguments.most_experts):
        yield number, _cases((*BY_SLOTS, DROPLESS), tokens, min(GROUP, tokens), number, arguments)
    case "tokens":
      for number in _fourfold(GROUP, most):
        yield number, _cases((*BY_SLOTS, DROPLESS), number, GROUP, experts, arguments)
    case "routers":
      for name in arguments.only:
        options = _soft_moe(SEQUENCE, experts) if name == "soft_moe" else {"name": name}
        yield name, {name: _case(options, tokens, SEQUENCE, experts, arguments)}


def _fourfold(first: int, last: int) -> Iterator[int]:
  while first <= last:
    yield first
    first *= 4


def _masks(tokens: int, group: int, k: int) -> tuple[str, ...]:
  return (MASKS,) if 4 * tokens * k * group <= MOST_MASK_BYTES else ()


def _cases(kinds: Sequence[str], tokens: int, group: int, experts: int, arguments: argparse.Namespace) -> Cases:
  """Layers of these kinds, on sequences of `group` tokens that are their routing groups."""
  k = arguments.top_k
  expert_choice = {"name": "expert_choice", "capacity_factor": k, "group_size": group}
  options = {
    "expert choice": expert_choice,
    MASKS: expert_choice,
    "top-{k}": {"name": "token_choice", "top_k": k, "capacity_factor": k},
    DROPLESS: {"name": "token_choice", "top_k": k, "capacity_factor": None},
    "Soft MoE": _soft_moe(group, experts),
  }
  return {
    kind.format(k=k): _case(options[kind], tokens, group, experts, arguments, masks=kind == MASKS) for kind in kinds
  }


def _soft_moe(group: int, experts: int) -> dict[str, Any]:
  """As many slots as tokens; with the default of one per expert the experts would have almost nothing to do."""
  return {"name": "soft_moe", "slots": group // experts}


def _case(
  options: dict[str, Any], tokens: int, sequence: int, experts: int, arguments: argparse.Namespace, masks: bool = False
) -> LayerCase:
  router = build(RouterConfig, options, "router")
  return LayerCase(router, tokens, sequence, experts, arguments.d_model, arguments.d_ff, arguments.dtype, masks)


def measure_point(cases: Cases, twin_experts: int, repeats: int, *, decisions: bool) -> list[dict[str, Any]]:
  """One row for the dense twin, `twin_experts` experts wide, and one for every layer.

  Args:
    cases: layers on batches of the same shape.
    twin_experts: width of the twin.
    repeats: timed calls of every program.
    decisions: whether the routers are also timed alone.
  """
  case = next(iter(cases.values()))
  layers = {name: LayerPrograms(case) for name, case in cases.items()}
  programs = {name: layer.whole() for name, layer in layers.items()}
  work = {name: measured_work(program, cases[name]) for name, program in programs.items()}
  work["dense"] = Work(twin_experts, twin_experts)
  programs["dense"] = dense_program(case.tokens, case.d_model, twin_experts * case.d_ff, jnp.dtype(case.dtype))
  alone = {f"decision of {name}": layer.decision() for name, layer in layers.items()} if decisions else {}
  times = measure_in_turns(programs | alone, repeats)

  def row(name: str) -> dict[str, Any]:
    # The time of a dense layer is proportional to its width.
    budget, done = (times["dense"].median * experts / twin_experts for experts in (work[name].budget, work[name].done))
    found = {"layer": name} | dataclasses.asdict(work[name])
    found |= {"ratio": times[name].median / budget, "work_ratio": times[name].median / done}
    if f"decision of {name}" in alone:
      found["decision"] = times[f"decision of {name}"].median / budget
    dropless = name in layers and layers[name].routing is RaggedRouting
    return found | _analysis(programs[name][0], dropless) | {"seconds": times[name].work}

  return [row(name) for name in ("dense", *layers)]


def _analysis(compiled: Any, dropless: bool) -> dict[str, float | None]:
  flops = None if dropless else compiled.cost_analysis()["flops"] / 1e9
  return {"gflop": flops, "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6}


HEADER = ("sweep", "at", "layer", "budget", "time, x budget", "work", "time, x work", "decision", "GFLOP", "MB")


def row_cells(row: dict[str, Any]) -> list[str]:
  """A row as shown on the terminal."""
  decision = f"{row['decision']:.2f}" if "decision" in row else "-"
  numbers = [f"{row[name]:.2f}" for name in ("budget", "ratio", "done", "work_ratio")]
  about = [row["sweep"], thousands(row["at"]), row["layer"]]
  return [*about, *numbers, decision, gflop_text(row["gflop"]), f"{row['megabytes']:.0f}"]


def main() -> None:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sweep", nargs="+", choices=SWEEPS, required=True)
  parser.add_argument(
    "--only", nargs="+", choices=sorted(RouterConfig.choices), default=sorted(RouterConfig.choices), metavar="ROUTER"
  )
  parser.add_argument("--tokens", type=positive_int, default=4096, help="in the sweeps over ways, experts and routers")
  parser.add_argument("--most_tokens", type=positive_int, default=65_536, help="in the sweeps over groups and tokens")
  parser.add_argument("--experts", type=positive_int, default=16)
  parser.add_argument("--most_experts", type=positive_int, default=512, help="in the sweep over experts")
  parser.add_argument("--d_model", type=positive_int, default=256)
  parser.add_argument("--d_ff", type=positive_int, default=1024, help="hidden width of an expert")
  parser.add_argument("--top_k", type=positive_int, default=2, help="experts per token, also the capacity factor")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--repeats", type=positive_int, default=9)
  parser.add_argument("--results", type=absent_path, help="new JSON file for all measured times")
  parser.add_argument("--figure", type=pathlib.Path, help="PNG of the sweeps over groups, experts and tokens")
  arguments = parser.parse_args()
  if arguments.figure and not set(PANELS) <= set(arguments.sweep):
    parser.error(f"--figure: expected --sweep {' '.join(PANELS)}")
  points = [(sweep, at, cases) for sweep in arguments.sweep for at, cases in sweep_points(sweep, arguments)]
  for _, _, cases in points:
    for case in cases.values():
      case.check()
  start_platform()

  rows = []
  print("\n".join(markdown_table(HEADER, [])))
  for sweep, at, cases in points:
    for found in measure_point(cases, arguments.top_k, arguments.repeats, decisions=sweep == "routers"):
      rows.append({"sweep": sweep, "at": at} | found)
      print(markdown_table(HEADER, [row_cells(rows[-1])])[-1], flush=True)
    if arguments.results:
      write_results({"settings": run_settings(arguments), "rows": rows}, arguments.results)
  if arguments.figure:
    draw_cost_curves(rows, arguments.figure)


if __name__ == "__main__":
  run_script(main)
