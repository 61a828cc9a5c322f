"""Expert parallelism against data parallelism: time of the same train step on several meshes, and the bytes it sends.

    python -m scripts.benchmarks.mesh --results results/mesh.json

On a machine without accelerators the devices are threads of its CPU. They share its cores, so time shows how much work
a mesh adds or saves (such as weights that are updated once, not on every replica) and says nothing about a network:
what a network would carry is shown in bytes.

Bytes are those that one device sends in one step, by kind, if all-reduce and all-gather are rings and all-to-all is
direct. "Measured" counts all collectives in the text of the compiled program, multiplied by the trips of their loops.
"Planned", with D x P devices along data and expert, in float32:

  all-to-all  4 L S d * 4 B * (P - 1) / P: in each of L layers with experts, the S slots of a device's own tokens go to
              their experts and come back, and so do their gradients
  all-reduce  2 (DP - 1) / DP * 4 B for every parameter that all devices hold, and 2 (D - 1) / D * 4 B for every weight
              of a device's own experts: their gradients
  all-gather  nothing

What is measured beyond that: the gradient of a tied embedding, which CPUs reduce twice, once for each use (input and
logits), where TPUs add both first; sums for losses, metrics and norms.
"""

import argparse
from typing import Any

import jax
from jax.sharding import Mesh

from moe.checks.step_programs import RunningStep, small_config
from moe.checks.timing import Times, measure_in_turns
from moe.commands import Parser, run_script
from moe.models.count import count_parameters
from moe.parallel.platform import start_platform
from moe.planning import hlo
from moe.planning.costs import program_costs
from moe.training.experiment import ExperimentConfig
from scripts.benchmarks.arguments import absent_path, add_small_model, positive_int, run_settings, write_results
from scripts.benchmarks.cost_tables import KINDS, mesh_table

FLOAT32 = 4


def planned_bytes(config: ExperimentConfig, mesh: Mesh) -> dict[str, float]:
  """What one device sends in one step by the closed form above, for a decoder with expert choice in sequences."""
  model, data = config.model, config.data
  rows, experts = mesh.shape["data"] * mesh.shape["expert"], mesh.shape["expert"]
  stack = model.stacks["decoder"]
  router: Any = stack.moe.router
  factor, layers = router.capacity_factor, sum(stack.has_experts)
  slots = factor * data.batch_size * data.targets_length / rows
  parameters = count_parameters(model, factor)
  common, own = parameters.total - parameters.experts, parameters.experts / experts
  return {
    "all-to-all": 4 * layers * slots * model.d_model * FLOAT32 * _others(experts),
    "all-reduce": 2 * FLOAT32 * (_others(rows) * common + _others(mesh.shape["data"]) * own),
    "all-gather": 0.0,
    "other": 0.0,
  }


def measured_bytes(text: str, devices: int) -> dict[str, float]:
  """What one device sends in one run of a compiled program, given its HLO.

  Raises:
    ValueError: a collective is in a loop whose trip count depends on data.
  """
  sent = dict.fromkeys((*KINDS, "other"), 0.0)
  for cost in program_costs(hlo.parse(text), devices).costs:
    if cost.collective is None:
      continue
    if not cost.known:
      raise ValueError(f"{cost.name} is in a loop whose trip count depends on data: expected a known trip count")
    kind = cost.collective.kind
    share = 1.0 if kind == "collective-permute" else _others(cost.collective.groups.shape[1])
    twice = 2 if kind == "all-reduce" else 1
    sent[kind if kind in KINDS else "other"] += cost.runs * twice * share * cost.collective.bytes
  return sent


def _others(devices: int) -> float:
  """The share of an array that is on the other devices."""
  return (devices - 1) / devices


def mesh_results(
  steps: dict[str, RunningStep], configs: dict[str, ExperimentConfig], times: dict[str, Times]
) -> dict[str, Any]:
  """The results by mesh; ratios are relative to the first."""
  first = times[next(iter(steps))]
  return {
    name: {
      "ratio": times[name].median / first.median,
      "measured": measured_bytes(step.compiled.as_text(), step.mesh.size),
      "planned": planned_bytes(configs[name], step.mesh),
      "seconds": times[name].work,
      "wall_seconds": times[name].wall,
    }
    for name, step in steps.items()
  }


def _mesh_sizes(text: str) -> tuple[int, int]:
  sizes = text.split("x")
  if len(sizes) != 2:
    raise argparse.ArgumentTypeError(f"{text!r}: expected DATAxEXPERT, such as 2x4")
  return positive_int(sizes[0]), positive_int(sizes[1])


def main() -> None:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
    "--meshes", type=_mesh_sizes, nargs="+", default=[(8, 1), (4, 2), (2, 4), (1, 8)], metavar="DATAxEXPERT"
  )
  add_small_model(parser, batch=16, length=128, about_length="tokens per sequence, which is a routing group")
  parser.add_argument("--repeats", type=positive_int, default=9)
  parser.add_argument("--results", type=absent_path, help="new JSON file for all measured times")
  arguments = parser.parse_args()
  devices = arguments.meshes[0][0] * arguments.meshes[0][1]
  jax.config.update("jax_num_cpu_devices", devices)
  start_platform()
  if len(jax.devices()) < devices:
    parser.error(f"--meshes: expected meshes of at most {len(jax.devices())} devices, not {devices}")

  names = ("d_model", "d_ff", "layers", "batch", "length", "experts")
  sizes = {name: getattr(arguments, name) for name in names} | {"width": arguments.top_k * arguments.d_ff}
  router = {"name": "expert_choice", "capacity_factor": arguments.top_k, "group_size": arguments.length}
  configs = {
    f"{data} x {expert}": small_config(**sizes, router=router, mesh={"data": data, "expert": expert})
    for data, expert in arguments.meshes
  }
  steps = {name: RunningStep(config, jax.devices()[:devices]) for name, config in configs.items()}
  found = mesh_results(
    steps, configs, measure_in_turns({name: (step, ()) for name, step in steps.items()}, arguments.repeats)
  )
  print("\n".join(mesh_table(found)))
  if arguments.results:
    write_results({"settings": run_settings(arguments), "meshes": found}, arguments.results)


if __name__ == "__main__":
  run_script(main)
