"""What a whole train step of a Mixture-of-Experts model costs next to its dense twin of equal activated FLOPs.

    python scripts/benchmarks/step.py --results results/step.json

The models are small decoders whose every second block has experts, compiled as a training run compiles them: loss,
gradients, optimizer, metrics. The twin has dense networks as wide as a token's experts side by side in those blocks;
all else is the same. The steps run in turns in one process. So do their parts by themselves: the layers with experts
(the twin's networks in their place), forward and backward, and the optimizer's update. The shares of the step that
these take need not be exact, for a part alone may be compiled otherwise than within the whole.

Ratios and shares are of medians, of CPU time on a CPU (where other processes may run) and of wall time elsewhere;
tokens per second are of wall time. FLOPs are those of matrix products, counted in the step's program with its loops
multiplied out; a dropless layer is a kernel or a loop whose length is known only when it runs, so its model has none
here.
"""

import argparse
from typing import Any

import jax
import numpy as np

from moe.config import ConfigError
from moe.parallel.host_memory import keep_freed_memory
from moe.routing import RaggedRouting
from moe.training.experiment import ExperimentConfig
from scripts.benchmarks.command_line import add_small_model, new_file, positive, write
from scripts.benchmarks.cost_tables import step_table
from scripts.benchmarks.layer_programs import LayerCase, LayerPrograms
from scripts.benchmarks.step_programs import RunningStep, small_config
from scripts.benchmarks.timing import about, dense_program, measure


def configs(arguments: argparse.Namespace) -> dict[str, ExperimentConfig]:
  """The models by name, the dense twin first."""
  k = arguments.top_k
  routers = {
    "expert choice": {"name": "expert_choice", "capacity_factor": k, "group_size": arguments.length},
    f"top-{k}": {"name": "token_choice", "top_k": k, "capacity_factor": k},
    f"top-{k} dropless": {"name": "token_choice", "top_k": k, "capacity_factor": None},
  }
  names = ("d_model", "d_ff", "layers", "batch", "length", "dtype")
  sizes = {name: getattr(arguments, name) for name in names} | {"width": k * arguments.d_ff}
  sparse = {name: small_config(**sizes, experts=arguments.experts, router=options) for name, options in routers.items()}
  return {"dense": small_config(**sizes)} | sparse


def measure_models(models: dict[str, ExperimentConfig], repeats: int) -> dict[str, dict[str, Any]]:
  """The results by model; ratios are to the one named "dense".

  Raises:
    ConfigError: a batch that a router cannot cut.
  """
  steps = {name: RunningStep(config, jax.devices()[:1]) for name, config in models.items()}
  layers = {name: LayerPrograms(_layer(config)) for name, config in models.items() if config.model.decoder_router}
  dense, data = models["dense"].model, models["dense"].data
  tokens = data.batch_size * data.targets_length
  programs = {name: (step, ()) for name, step in steps.items()}
  programs |= {f"layer of {name}": layer.whole() for name, layer in layers.items()}
  programs["layer of dense"] = dense_program(tokens, dense.d_model, dense.d_ff, dense.compute_dtype)
  programs |= {f"update of {name}": step.update() for name, step in steps.items()}
  times = measure(programs, repeats)

  def row(name: str) -> dict[str, Any]:
    step, whole = steps[name], times[name]
    dropless = name in layers and layers[name].routing is RaggedRouting
    with_experts = dense.decoder_layers // dense.moe_every
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


def _layer(config: ExperimentConfig) -> LayerCase:
  """One layer with experts, on the batch of a step."""
  model, data = config.model, config.data
  sizes = (model.num_experts, model.d_model, model.expert_d_ff, model.dtype)
  return LayerCase(model.decoder_router, data.batch_size * data.targets_length, data.targets_length, *sizes)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add_small_model(parser, batch=8, length=256, about_length="tokens of a sequence")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--repeats", type=positive, default=15)
  parser.add_argument("--results", type=new_file, help="a new JSON file with every measured time")
  arguments = parser.parse_args()
  if jax.default_backend() == "cpu":
    keep_freed_memory()
  try:
    found = measure_models(configs(arguments), arguments.repeats)
  except ConfigError as error:
    parser.error(str(error))
  print("\n".join(step_table(found)))
  if arguments.results:
    write({"settings": about(arguments), "models": found}, arguments.results)


if __name__ == "__main__":
  main()
