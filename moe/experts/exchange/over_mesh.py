"""Dispatch and combine over a mesh.

Every device holds a shard of the rows and, along the mesh axis `expert`, a shard of the experts. Inside `shard_map` it
puts its tokens into the slots of all experts; an all-to-all along `expert` sends the slots to the experts, a second one
sends their outputs back. Both use the experts' dtype.

The config sets the routing group, so a group may span several devices (batch-wide expert choice). Its decision was made
on gathered scores; here every device has the complete routing, a few integers per token, picks out the assignments of
its own tokens, and sends them like a dropless routing (`rounds`), or adds its tokens' part to the mixtures of a soft
one (`soft`). Tokens are never gathered.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from moe.experts.dispatch import dispatch_and_combine, one_device
from moe.experts.exchange.assignments import of_groups, of_rows
from moe.experts.exchange.rounds import in_rounds
from moe.experts.exchange.soft import soft_over_devices
from moe.experts.network import Experts
from moe.parallel.mesh import ROW_AXES, row_shards
from moe.routing.groups import Groups
from moe.routing.types import RaggedRouting, Routing, SoftRouting


def over_mesh(mesh: AbstractMesh, x: jax.Array, groups: Groups, routing: Routing, experts: Experts) -> jax.Array:
  """Each token's weighted sum of its experts' outputs.

  Args:
    mesh: the one that the program is traced for.
    x: `[B, T, d]`, of the experts' dtype.
    groups: how the batch was divided for `routing`.
    routing: of all groups.
    experts: all of them.

  Returns:
    `[B, T, d]`.

  Raises:
    ValueError: the rows of `x` cannot be divided over the mesh, or a soft routing's groups do not fit its shape.
  """
  shards, weights = row_shards(mesh), experts.weights()
  if x.shape[0] % shards:
    raise ValueError(f"{x.shape[0]} rows: expected a multiple of data x expert = {shards} devices")
  if _is_local(groups, x.shape, shards):
    return _sharded(mesh, _local_groups(groups, experts), PartitionSpec(ROW_AXES))(x, routing, weights)
  if isinstance(routing, SoftRouting):
    by_token = jax.tree.map(lambda array: groups.join(array, *x.shape[:2]), routing)
    return _sharded(mesh, soft_over_devices(groups, experts), PartitionSpec(ROW_AXES))(x, by_token, weights)
  return _sharded(mesh, _wide_groups(groups, x.shape, experts), PartitionSpec())(x, routing, weights)


def _is_local(groups: Groups, shape: tuple[int, ...], shards: int) -> bool:
  """Whether every group lies on one device."""
  batch, length, _ = shape
  return not groups.by_position and (batch // shards * length) % groups.size == 0


def _sharded(mesh: AbstractMesh, on_device: Callable, routing: PartitionSpec) -> Callable:
  """`on_device(x, routing, weights)` on every device's rows and experts, summed over shards of the width."""

  def run(x, routing, weights):
    return on_device(x, routing, weights)[None]

  mapped = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(PartitionSpec(ROW_AXES), routing, PartitionSpec("expert", None, "model")),
    out_specs=PartitionSpec("model", ROW_AXES),
    check_vma=False,
  )
  # Each shard of an expert's width gives a partial output. Combining is linear, so the sum can wait until the end, over
  # tokens instead of slots; it is outside `shard_map`, because inside its transpose would sum a second time.
  return lambda *arguments: mapped(*arguments).sum(axis=0)


def _local_groups(groups: Groups, experts: Experts) -> Callable:
  def on_device(x, routing, weights):
    tokens = groups.cut(x)
    if jax.lax.axis_size("expert") == 1:
      return one_device(tokens, routing, experts, weights).reshape(x.shape)

    def slots(inputs: jax.Array) -> jax.Array:
      """Sends `[E, R, d]` to the devices that hold the experts, through the experts, and back."""
      arrived = jax.lax.all_to_all(inputs, "expert", split_axis=0, concat_axis=1, tiled=True)  # [E / P, P * R, d]
      return jax.lax.all_to_all(experts.slots(weights, arrived), "expert", split_axis=1, concat_axis=0, tiled=True)

    def ragged(tokens: jax.Array, routing: RaggedRouting) -> jax.Array:
      flat = tokens.reshape(-1, tokens.shape[-1])
      return in_rounds(flat, of_groups(routing, tokens.shape[1]), experts.ragged, weights).reshape(tokens.shape)

    return dispatch_and_combine(tokens, routing, slots, ragged).reshape(x.shape)

  return on_device


def _wide_groups(groups: Groups, shape: tuple[int, ...], experts: Experts) -> Callable:
  batch, length, _ = shape

  def on_device(x, routing, weights):
    tokens = x.reshape(-1, x.shape[-1])
    flat = groups.cut(jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length))
    first = jax.lax.axis_index(ROW_AXES) * len(tokens)
    return in_rounds(tokens, of_rows(routing, flat, first, len(tokens)), experts.ragged, weights).reshape(x.shape)

  return on_device
