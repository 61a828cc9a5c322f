"""What a whole train step of a Mixture-of-Experts model costs relative to its dense twin of equal activated FLOPs.

    python -m scripts.benchmarks.step --results results/step.json

The models are small decoders with experts in every second block, compiled as in a training run: loss, gradients,
optimizer, metrics. In those blocks the twin has dense networks as wide as a token's experts side by side; everything
else is the same. The steps take turns in one process, and so do their parts alone: the layers with experts (the twin's
networks in their place), forward and backward, and the optimizer's update. The parts' shares of the step are
approximate, since a part alone may be compiled differently than within the step.

Ratios and shares are of medians: of CPU time on a CPU, where other processes may run, and of wall time elsewhere.
Tokens per second are of wall time. FLOPs are those of matrix products, counted in the step's program and multiplied by
the trips of its loops; a dropless layer is a kernel or a loop whose trip count depends on data, so the FLOPs of its
model are not given.
"""

import argparse
from typing import Any

import jax
import numpy as np

from moe.checks.layer_programs import LayerCase, LayerPrograms, Program, compared_routers
from moe.checks.step_programs import RunningStep, small_config
from moe.checks.timing import dense_program, measure_in_turns
from moe.commands import Parser, run_script
from moe.models import MoEConfig
from moe.parallel.platform import start_platform
from moe.routing import RaggedRouting
from moe.training.experiment import ExperimentConfig
from scripts.benchmarks.arguments import absent_path, add_small_model, positive_int, run_settings, write_results
from scripts.benchmarks.cost_tables import step_table


def step_configs(arguments: argparse.Namespace) -> dict[str, ExperimentConfig]:
  """The configs by model, the dense twin first."""
  k = arguments.top_k
  routers = compared_routers(k, arguments.length)
  names = ("d_model", "d_ff", "layers", "batch", "length", "dtype")
  sizes = {name: getattr(arguments, name) for name in names} | {"width": k * arguments.d_ff}
  sparse = {name: small_config(**sizes, experts=arguments.experts, router=options) for name, options in routers.items()}
  return {"dense": small_config(**sizes)} | sparse


def measure_models(models: dict[str, ExperimentConfig], repeats: int) -> dict[str, dict[str, Any]]:
  """The results by model; ratios are relative to the one named "dense".

  Raises:
    ConfigError: a router cannot divide its batch into groups.
  """
  steps = {name: RunningStep(config, jax.devices()[:1]) for name, config in models.items()}
  layers = {name: LayerPrograms(_layer(config)) for name, config in models.items() if _moe(config)}
  dense, data = models["dense"].model, models["dense"].data
  with_experts = sum(next(iter(models[name] for name in layers)).model.stacks["decoder"].has_experts)
  tokens = data.batch_size * data.targets_length
  programs: dict[str, Program] = {name: (step, ()) for name, step in steps.items()}
  programs |= {f"layer of {name}": layer.whole() for name, layer in layers.items()}
  programs["layer of dense"] = dense_program(tokens, dense.d_model, dense.d_ff, dense.compute_dtype)
  programs |= {f"update of {name}": step.update() for name, step in steps.items()}
  times = measure_in_turns(programs, repeats)

  def row(name: str) -> dict[str, Any]:
    step, whole = steps[name], times[name]
    dropless = name in layers and layers[name].routing is RaggedRouting
    return {
      "ratio": whole.median / times["dense"].median,
      "tokens_per_second": tokens / float(np.median(whole.wall)),
      "gflop": None if dropless or step.flops is None else step.flops / 1e9,
      "layers": with_experts * times[f"layer of {name}"].median / whole.median,
      "update": times[f"update of {name}"].median / whole.median,
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
      "megabytes": step.compiled.memory_analysis().temp_size_in_bytes / 1e6,
      "seconds": whole.work,
      "wall_seconds": whole.wall,
    }

  return {name: row(name) for name in models}


def _moe(config: ExperimentConfig) -> MoEConfig | None:
  return config.model.stacks["decoder"].moe


def _layer(config: ExperimentConfig) -> LayerCase:
  """One layer with experts and the batch of a step."""
  model, moe, data = config.model, _moe(config), config.data
  sizes = (moe.num_experts, model.d_model, moe.d_ff, model.dtype)
  return LayerCase(moe.router, data.batch_size * data.targets_length, data.targets_length, *sizes)


def main() -> None:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add_small_model(parser, batch=8, length=256, about_length="tokens per sequence")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--repeats", type=positive_int, default=15)
  parser.add_argument("--results", type=absent_path, help="new JSON file for all measured times")
  arguments = parser.parse_args()
  start_platform()
  found = measure_models(step_configs(arguments), arguments.repeats)
  print("\n".join(step_table(found)))
  if arguments.results:
    write_results({"settings": run_settings(arguments), "models": found}, arguments.results)


if __name__ == "__main__":
  run_script(main)
