"""Dispatch and combine over a mesh.

Every device holds a shard of the rows and, along the mesh axis `expert`, a shard of the experts. Inside `shard_map` it
puts its tokens into the slots of all experts; an all-to-all along `expert` sends the slots to the experts, a second one
sends their outputs back. Both use the experts' dtype.

The config sets the routing group, so a group may span several devices (batch-wide expert choice). Its decision was made
on gathered scores; here every device has the complete routing, a few integers per token, picks out the assignments of
its own tokens, and sends them like a dropless routing (`rounds`), or adds its tokens' part to the mixtures of a soft
one (`soft`). Tokens are never gathered.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from moe.experts.dispatch import dispatch_and_combine, one_device
from moe.experts.exchange.assignments import of_groups, of_rows
from moe.experts.exchange.rounds import in_rounds, swap
from moe.experts.exchange.soft import soft_over_devices
from moe.experts.kernels.dropout import HiddenDropout, named
from moe.experts.network import Experts, Weights
from moe.parallel.kept import kept
from moe.parallel.mesh import ROW_AXES, row_shards
from moe.parallel.sharding import gather_shards
from moe.routing.groups import Groups
from moe.routing.types import RaggedRouting, Routing, SoftRouting


def over_mesh(
  mesh: AbstractMesh,
  x: jax.Array,
  groups: Groups,
  routing: Routing,
  experts: Experts,
  dropout: HiddenDropout | None = None,
) -> jax.Array:
  """Each token's weighted sum of its experts' outputs.

  Args:
    mesh: the one that the program is traced for.
    x: `[B, T, d]`, of the experts' dtype.
    groups: how the batch was divided for `routing`.
    routing: of all groups.
    experts: all of them.
    dropout: of their hidden units; its names are made here.

  Returns:
    `[B, T, d]`.

  Raises:
    ValueError: the rows of `x` cannot be divided over the mesh.
    ConfigError: the groups of a soft routing do not fit the mesh (`check_soft_group`).
  """
  shards, weights, dropout = row_shards(mesh), experts.weights(), named(dropout, None)
  on_mesh = functools.partial(_sharded, mesh, experts)
  if x.shape[0] % shards:
    raise ValueError(f"{x.shape[0]} rows: expected a multiple of data x expert = {shards} devices")
  if _is_local(groups, x.shape, shards):
    return on_mesh(_local_groups(groups, experts), PartitionSpec(ROW_AXES))(x, routing, weights, dropout)
  if isinstance(routing, SoftRouting):
    by_token = jax.tree.map(lambda array: groups.join(array, *x.shape[:2]), routing)
    return on_mesh(soft_over_devices(groups, experts), PartitionSpec(ROW_AXES))(x, by_token, weights, dropout)
  return on_mesh(_wide_groups(groups, x.shape, experts), PartitionSpec())(x, routing, weights, dropout)


def _is_local(groups: Groups, shape: tuple[int, ...], shards: int) -> bool:
  """Whether every group lies on one device."""
  batch, length, _ = shape
  return not groups.by_position and (batch // shards * length) % groups.size == 0


def _sharded(mesh: AbstractMesh, experts: Experts, on_device: Callable, routing: PartitionSpec) -> Callable:
  """`on_device(x, routing, weights, dropout)` on every device's rows and experts, summed over shards of the width.

  Rows of matrices that FSDP divides are gathered, and their gradients summed into shards: along the axis that comes
  last in memory as TPUs compute the gradient, which is when they can. The dropout that it is given has the device's
  first hidden unit, and names the device's tokens `[N]`.
  """
  up, down = (one.get_metadata().get("shards", ()) for one in (experts.up, experts.down))

  def run(x, routing, weights, dropout):
    ups = [gather_shards(one, up, 1) for one in weights.ups]
    weights = Weights(ups, gather_shards(weights.down, down, 2), weights.biases)
    return on_device(x, routing, weights, dropout and _here(dropout, x.shape, weights))[None]

  ups: Any = PartitionSpec("expert", up or None, "model")  # of all of them
  biases: Any = PartitionSpec("expert", "model")
  divided = Weights(ups, PartitionSpec("expert", None, ("model", *down)), biases)  # type: ignore[arg-type]
  mapped = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(PartitionSpec(ROW_AXES), routing, divided, PartitionSpec()),
    out_specs=PartitionSpec("model", ROW_AXES),
    check_vma=False,
  )
  # Each shard of an expert's width gives a partial output. Combining is linear, so the sum can wait until the end, over
  # tokens instead of slots; it is outside `shard_map`, because inside its transpose would sum a second time.
  return lambda *arguments: mapped(*arguments).sum(axis=0)


def _here(dropout: HiddenDropout, shape: tuple[int, ...], weights: Weights) -> HiddenDropout:
  count = shape[0] * shape[1]
  names = jax.lax.axis_index(ROW_AXES) * count + jnp.arange(count, dtype=jnp.int32)
  return dataclasses.replace(dropout, first=jax.lax.axis_index("model") * weights.down.shape[-1], names=names)


def _local_groups(groups: Groups, experts: Experts) -> Callable:
  def on_device(x, routing, weights, dropout):
    tokens = groups.cut(x)
    dropout = dropout and named(dropout, dropout.names.reshape(tokens.shape[:2]))
    devices = jax.lax.axis_size("expert")  # P
    if devices == 1:
      return one_device(tokens, routing, experts, weights, dropout).reshape(x.shape)

    def slots(inputs: jax.Array, names: jax.Array | None) -> jax.Array:
      """Sends `[E, R, d]` to the devices that hold the experts, through the experts, and back."""

      def send(slots: jax.Array) -> jax.Array:
        sent = kept(swap(slots.reshape(devices, -1, *slots.shape[1:])))  # [P, E / P, R, ...], by the rows' device
        return sent.swapaxes(0, 1).reshape(len(sent[0]), -1, *slots.shape[2:])  # [E / P, P * R, ...]

      outputs = experts.slots(weights, send(inputs), None if names is None else named(dropout, send(names)))
      outputs = outputs.reshape(len(outputs), devices, *inputs.shape[1:]).swapaxes(0, 1)  # [P, E / P, R, d]
      return kept(swap(outputs)).reshape(inputs.shape)

    def ragged(tokens: jax.Array, routing: RaggedRouting) -> jax.Array:
      flat = tokens.reshape(-1, tokens.shape[-1])
      assigned = of_groups(routing, tokens.shape[1])
      return in_rounds(flat, assigned, experts.ragged, weights, dropout).reshape(tokens.shape)

    names = None if dropout is None else dropout.names
    return dispatch_and_combine(tokens, routing, slots, ragged, names).reshape(x.shape)

  return on_device


def _wide_groups(groups: Groups, shape: tuple[int, ...], experts: Experts) -> Callable:
  batch, length, _ = shape

  def on_device(x, routing, weights, dropout):
    tokens = x.reshape(-1, x.shape[-1])
    flat = groups.cut(jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length))
    first = jax.lax.axis_index(ROW_AXES) * len(tokens)
    assigned = of_rows(routing, flat, first, len(tokens))
    return in_rounds(tokens, assigned, experts.ragged, weights, dropout).reshape(x.shape)

  return on_device
