"""What a layer costs with each router: time of forward + backward next to a dense layer of equal activated FLOPs.

    python scripts/benchmark_routers.py [--only NAME ...] [--results results/routers.json]

Every router with its default options (Soft MoE with as many slots as tokens), in training mode, on the layer of
scripts/benchmark_layer.py. The dense twin's time is scaled to the experts per token that a router really used, which
its own metric says. A router's decision is timed alone as well, so that the table can tell what assigning costs and
what carrying and computing cost. All programs run interleaved in one process; ratios are of medians of CPU time (wall
time on an accelerator).
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.analysis.timing import about, both_ways, dense_program, measure
from moe.layers.moe import MoE
from moe.parallel.host_memory import keep_freed_memory
from moe.routing import ROUTERS, RouterConfig, SoftRouting

# As many slots as tokens: one slot an expert, the default, leaves the experts next to nothing to do.
OPTIONS = {"soft_moe": {"slots": 32}}


def programs(name: str, arguments: argparse.Namespace) -> tuple[dict, float]:
  """The compiled layer and the compiled decision of one router, with their arguments; experts per token it uses."""
  dtype, experts = jnp.float32, arguments.experts
  batch, length = arguments.tokens // arguments.sequence, arguments.sequence
  config = RouterConfig(name, ROUTERS[name].Options(**OPTIONS.get(name, {})))
  site = (experts, arguments.d_model, arguments.d_ff, "gelu")
  graph, params, rest = nnx.split(
    MoE(*site, config, dtype, vocab_size=arguments.vocabulary, rngs=nnx.Rngs(0)), nnx.Param, ...
  )
  keys = jax.random.split(jax.random.key(0), 3)
  x, cotangent = (jax.random.normal(key, (batch, length, arguments.d_model), dtype) for key in keys[:2])
  segments = jnp.ones((batch, length), jnp.int32)
  ids = jax.random.randint(keys[2], (batch, length), 2, arguments.vocabulary)
  positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
  about_tokens = {"segments": segments, "ids": ids, "positions": positions, "training": True, "key": keys[0]}

  def layer(params, x):
    y, report = nnx.merge(graph, params, rest, copy=True)(x, **about_tokens)
    # Part of every training step; a zero weight keeps it alive.
    return y + 0 * (report.auxiliary_loss + sum(jnp.sum(metric) for metric in report.metrics.values()))

  def decision(params, x):
    """Everything but the experts: what its gradient flows through, as one array."""
    _, report = nnx.merge(graph, params, rest, copy=True)(x, **about_tokens)
    routing = report.routing
    soft = isinstance(routing, SoftRouting)
    whole = routing.dispatch.sum() + routing.combine.sum() if soft else routing.weight.sum() + routing.token.sum()
    return whole + report.auxiliary_loss + 0 * sum(jnp.sum(metric) for metric in report.metrics.values())

  used = jax.jit(lambda x: nnx.merge(graph, params, rest, copy=True)(x, **about_tokens)[1].metrics["capacity_factor"])(
    x
  )
  run = {"layer": (both_ways(layer), (params, x, cotangent)), "decision": (both_ways(decision), (params, x, 1.0))}
  return {kind: (jax.jit(f).lower(*args).compile(), args) for kind, (f, args) in run.items()}, float(used)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", nargs="+", choices=sorted(ROUTERS), default=sorted(ROUTERS), metavar="NAME")
  parser.add_argument("--tokens", type=int, default=4096)
  parser.add_argument("--sequence", type=int, default=512)
  parser.add_argument("--d_model", type=int, default=256)
  parser.add_argument("--d_ff", type=int, default=1024)
  parser.add_argument("--experts", type=int, default=16)
  parser.add_argument("--vocabulary", type=int, default=8192)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--results", type=pathlib.Path, help="a new JSON file with every measured time")
  arguments = parser.parse_args()
  if arguments.results and arguments.results.exists():
    parser.error(f"--results {arguments.results} exists; name a new file")
  keep_freed_memory()

  rows = {}
  print("| router | experts per token | layer, x dense | decision, x dense |\n|---|---|---|---|")
  for name in arguments.only:
    compiled, used = programs(name, arguments)
    width = int(arguments.d_ff * 2)
    compiled["dense"] = dense_program(arguments.tokens, arguments.d_model, width)
    seconds = measure(compiled, arguments.repeats)
    # A dense layer's time grows in proportion to its width.
    dense = np.median(seconds["dense"]) * used / 2
    rows[name] = {
      "experts_per_token": used,
      "ratio": float(np.median(seconds["layer"]) / dense),
      "decision": float(np.median(seconds["decision"]) / dense),
      "seconds": seconds,
    }
    print("| {} | {experts_per_token:.2f} | {ratio:.2f} | {decision:.2f} |".format(name, **rows[name]), flush=True)
  if arguments.results:
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps({"settings": about(arguments), "routers": rows}, indent=1) + "\n")


if __name__ == "__main__":
  main()
