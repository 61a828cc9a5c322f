"""What the plan reads off a compiled program with known collectives."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from moe.parallel.mesh import MeshConfig, make_mesh
from moe.planning import hlo
from moe.planning.collectives import axes
from moe.planning.costs import program_costs

ROUNDS = 3


def on_device(x):
  """Float32 `[8, 4]` a device."""

  def one(x, _):
    x = jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)  # groups of 4: 128 bytes
    return jax.lax.psum(x, "model"), None  # pairs: 128 bytes

  x, _ = jax.lax.scan(one, x, length=ROUNDS)
  everyone = jax.lax.all_gather(x, ("expert", "model"), tiled=True)  # 8 x 128 bytes
  return jax.lax.psum_scatter(everyone[: len(x)], "expert", tiled=True)  # 128 bytes


def test_collectives_of_a_program_on_eight_devices():
  mesh = make_mesh(MeshConfig(data=1, expert=4, model=2))
  rows = PartitionSpec(("expert", "model"))
  mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
  costs = program_costs(hlo.parse(mapped.lower(jnp.ones((64, 4))).compile().as_text()), 8).costs
  sent = [(cost.runs, cost.collective) for cost in costs if cost.collective]
  assert sorted((one.kind, axes(one.groups, mesh), runs, one.bytes) for runs, one in sent) == [
    ("all-gather", "expert+model", 1, 1024),
    ("all-reduce", "model", 3, 128),
    ("all-to-all", "expert", 3, 128),
    ("reduce-scatter", "expert", 1, 128),
  ]
