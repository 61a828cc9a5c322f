"""What random routers tell about the next token, in nats per token: expert choice by group size, and causal routers.

    python -m scripts.benchmarks.leaks --results results/leaks.json

Tokens are independent and uniform over 8 ids. A router's logits are a standard normal table by token, plus a small bias
by position that breaks the ties of equal tokens; every repetition draws a new router. Plain expert choice routes groups
of adjacent tokens, one sequence per group; the others read batches of 32 sequences of 16 tokens. Standard errors are
over routers.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.commands import Parser, run_script
from moe.config import build
from moe.evaluation.mask_information import Masks, mask_information
from moe.routing import RouterConfig, RouterInput, RouterState, Site
from moe.routing.weights import layer_weights
from scripts.benchmarks.arguments import absent_path, positive_int, write_results

VOCABULARY, EXPERTS, SEQUENCES, POSITION_BIAS = 8, 4, 32, 0.3
POOLS = (4, 8, 16, 64)
CAUSAL = {
  "position_grouped": {},
  "prefix_rank": {"slack": None},
  "threshold": {"slack": None},
  "token_choice": {"capacity_factor": None},
}
LENGTH = 16


def random_masks(name: str, options: dict, sequences: int, length: int, seed: int) -> Masks:
  """A function from int32 `[B, T]`, in batches of `sequences`, to the masks `[B, T, E]` of a router drawn by `seed`."""
  config = build(RouterConfig, {"name": name, **options})
  # One feature per token id and one per position, so that the kernel consists of the two tables.
  router: Any = config.make(Site(VOCABULARY + length, EXPERTS), nnx.Rngs(seed))
  scale = jnp.where(jnp.arange(VOCABULARY + length) < VOCABULARY, 1.0, POSITION_BIAS)
  router.kernel[...] = scale[:, None] * jax.random.normal(jax.random.key(seed), router.kernel.shape)
  positions = jnp.broadcast_to(jnp.arange(length), (sequences, length))
  groups = config.groups(sequences, length)
  graph, variables = nnx.split(router)

  def inputs(ids):
    tokens = jnp.concatenate([jax.nn.one_hot(ids, VOCABULARY), jax.nn.one_hot(positions, length)], axis=-1)
    return RouterInput(*(groups.cut(array) for array in (tokens, ids >= 0, ids, positions)))

  @jax.jit
  def trained(variables, ids):
    router = nnx.merge(graph, variables)
    seen = router(inputs(ids), training=True).seen | {"tokens": jnp.array(ids.size)}
    router.learn(jax.tree.map(lambda one: one[None], seen))
    return nnx.state(router)

  if jax.tree.leaves(nnx.state(router, RouterState)):
    for key in jax.random.split(jax.random.key(seed + 1), 50):
      variables = trained(variables, jax.random.randint(key, (sequences, length), 0, VOCABULARY))

  @jax.jit
  def routings(batches):
    return jax.lax.map(lambda ids: nnx.merge(graph, variables)(inputs(ids), training=False).routing, batches)

  def masks(rows):
    found = routings(rows.reshape(-1, sequences, length))
    return (layer_weights(found, groups, sequences, length) > 0).reshape(*rows.shape, EXPERTS)

  return masks


def measure_leaks(name: str, options: dict, sequences: int, length: int, tokens: int, seeds: int) -> dict[str, float]:
  """Mean and standard error over `seeds` routers, each measured on `tokens` tokens."""
  blocks, batches = 2, 4
  rows = max(tokens // (length * blocks * batches * sequences), 1) * sequences
  found = []
  for seed in range(seeds):
    masks = random_masks(name, options, sequences, length, seed)
    each = mask_information(
      masks, range(VOCABULARY), rows, length, jax.random.key(seed), batches=batches, blocks=blocks
    )
    found.append(float(each.nats))
  return {"nats": float(np.mean(found)), "standard_error": float(np.std(found, ddof=1) / np.sqrt(seeds))}


def main() -> None:
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=positive_int, default=2_000_000, help="per router")
  parser.add_argument("--seeds", type=positive_int, default=12, help="routers of each kind")
  parser.add_argument("--results", type=absent_path, help="new JSON file")
  arguments = parser.parse_args()

  rows: dict[str, tuple[str, dict[str, Any], int, int]] = {
    f"expert_choice, pool of {pool}": ("expert_choice", {"group_size": pool}, 1, pool) for pool in POOLS
  }
  rows |= {name: (name, options, SEQUENCES, LENGTH) for name, options in CAUSAL.items()}
  results = {}
  print("| router | nats | standard error |\n|---|---|---|")
  for label, row in rows.items():
    started = time.perf_counter()
    results[label] = measure_leaks(*row, arguments.tokens, arguments.seeds)
    results[label]["seconds"] = time.perf_counter() - started
    print("| {} | {nats:.5f} | {standard_error:.5f} |".format(label, **results[label]), flush=True)
  if arguments.results:
    settings = {"tokens": arguments.tokens, "seeds": arguments.seeds, "position_bias": POSITION_BIAS}
    write_results({"settings": settings, "routers": results}, arguments.results)


if __name__ == "__main__":
  run_script(main)
