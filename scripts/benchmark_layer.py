"""What a Mixture-of-Experts layer costs next to a dense one: CPU time, FLOPs and memory of forward + backward.

    python scripts/benchmark_layer.py [--results benchmarks/layer.json]

The dense twin is a flattened two-matrix GELU network whose hidden width gives the same activated FLOPs. All programs
run interleaved in one process; the ratio is of median times (CPU time on a CPU, where other processes may run; wall
time elsewhere). FLOPs and megabytes are XLA's own analysis of the compiled program; megabytes are its temporary
buffers, without parameters and results.
"""

import argparse
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.analysis.timing import about, both_ways, dense_program, measure
from moe.layers.moe import MoE
from moe.parallel.host_memory import keep_freed_memory
from moe.routing import RouterConfig


def programs(arguments: argparse.Namespace) -> dict[str, tuple[Callable, tuple]]:
  """Compiled forward + backward functions and their arguments, by the name of their row in the table."""
  keys = jax.random.split(jax.random.key(0), 2)
  dtype, width = jnp.dtype(arguments.dtype), int(arguments.d_ff * arguments.capacity_factor)
  x, cotangent = (jax.random.normal(key, (arguments.tokens, arguments.d_model), dtype) for key in keys[:2])

  found = {}

  def add(name: str, router: dict, sequence: int) -> None:
    layer = MoE(
      arguments.experts,
      arguments.d_model,
      arguments.d_ff,
      "gelu",
      RouterConfig.from_mapping(router, "router"),
      dtype,
      rngs=nnx.Rngs(0),
    )
    graph, params = nnx.split(layer)
    segments = jnp.ones((arguments.tokens // sequence, sequence), jnp.int32)

    def apply(params, x):
      y, report = nnx.merge(graph, params)(x.reshape(*segments.shape, -1), segments=segments, training=False)
      # The report is made in every training step, so its cost belongs here; a zero weight keeps it alive.
      return y.reshape(x.shape) + 0 * sum(jnp.sum(metric) for metric in report.metrics.values()).astype(dtype)

    found[name] = (both_ways(apply), (params, x, cotangent))

  c = arguments.capacity_factor
  for group in arguments.groups:
    add(
      f"expert choice, groups of {group}", {"name": "expert_choice", "capacity_factor": c, "group_size": group}, group
    )
  if c == int(c):
    for group in arguments.groups:
      choice = {"name": "token_choice", "top_k": int(c), "capacity_factor": c}
      add(f"top-{c:g} by position, groups of {group}", choice, group)
    dropless = {"name": "token_choice", "top_k": int(c), "capacity_factor": None}
    add(f"top-{c:g} dropless", dropless, arguments.tokens)
  compiled = {name: (jax.jit(function).lower(*args).compile(), args) for name, (function, args) in found.items()}
  return {"dense": dense_program(arguments.tokens, arguments.d_model, width, dtype)} | compiled


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--d_ff", type=int, default=1024)
  parser.add_argument("--experts", type=int, default=16)
  parser.add_argument("--capacity_factor", type=float, default=2.0)
  parser.add_argument("--groups", type=int, nargs="+", default=[256, 1024, 4096])
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--repeats", type=int, default=25)
  parser.add_argument("--results", type=pathlib.Path, help="a new JSON file with every measured time")
  arguments = parser.parse_args()
  if arguments.results and arguments.results.exists():
    parser.error(f"--results {arguments.results} exists; name a new file")
  keep_freed_memory()

  compiled = programs(arguments)
  seconds = measure(compiled, arguments.repeats)
  dense = np.median(seconds["dense"])
  rows = {}
  print("| layer | x dense | GFLOP | MB |\n|---|---|---|---|")
  for name, (function, _) in compiled.items():
    rows[name] = {
      "ratio": float(np.median(seconds[name]) / dense),
      # XLA counts the body of a loop once, however often it runs.
      "gflop": None if name.endswith("dropless") else function.cost_analysis()["flops"] / 1e9,
      "megabytes": function.memory_analysis().temp_size_in_bytes / 1e6,
      "seconds": seconds[name],
    }
    gflop = "-" if rows[name]["gflop"] is None else f"{rows[name]['gflop']:.1f}"
    print("| {} | {ratio:.2f} | {} | {megabytes:.0f} |".format(name, gflop, **rows[name]))
  if arguments.results:
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps({"settings": about(arguments), "layers": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
