"""How tokens travel to their experts and back, on one device or over a mesh: dispatch, experts, combine.

On a mesh every device holds a share of the rows and, along the axis `expert`, a share of the experts. In `shard_map` it
puts its tokens into the slots of all experts, an all-to-all along `expert` carries the slots to where the experts are,
a second one carries their outputs back. What crosses the wire is of the experts' dtype.

The routing group is the config's, so a group may lie on several devices (batch-wide expert choice). Its decision was
made on gathered scores; here every device has the whole routing, a few integers a token, picks out its own tokens'
assignments, and sends them as a dropless routing does (`moe.experts.exchange.rounds`), or adds its tokens' part to the
mixtures of a soft one (`moe.experts.exchange.soft`). Tokens are never gathered.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from moe.experts import dispatch as local
from moe.experts.exchange.assignments import Assignments, of_groups, of_rows
from moe.experts.exchange.expert_functions import ExpertFunctions
from moe.experts.exchange.rounds import in_rounds
from moe.experts.exchange.soft import soft_over_devices
from moe.parallel.mesh import ROW_AXES, current_mesh, row_shards
from moe.routing.groups import Groups
from moe.routing.types import RaggedRouting, Routing, SlotRouting, SoftRouting


def through_experts(
  x: jax.Array, groups: Groups, routing: Routing, experts: ExpertFunctions, weights: Any
) -> jax.Array:
  """Every token's weighted sum of its experts' outputs.

  Args:
    x: `[B, T, d]`, of the experts' dtype.
    groups: the cut of the batch that `routing` was decided over.
    routing: of all groups.
    experts: the functions.
    weights: their parameters, a tree of `[E, d, f]`.

  Returns:
    `[B, T, d]`.

  Raises:
    ValueError: the rows of `x` cannot be divided over the current mesh, or a soft routing's groups lie across it.
  """
  mesh = current_mesh()
  if mesh is None:
    tokens = groups.cut(x)
    return groups.join(_on_one_device(tokens, routing, experts, weights), *x.shape[:2])
  shards = row_shards(mesh)
  if x.shape[0] % shards:
    raise ValueError(f"{x.shape[0]} rows cannot be divided over data x expert = {shards} devices")
  if _is_local(groups, x.shape, shards):
    return _sharded(mesh, _local_groups(groups, experts), PartitionSpec(ROW_AXES))(x, routing, weights)
  if isinstance(routing, SoftRouting):
    by_token = jax.tree.map(lambda array: groups.join(array, *x.shape[:2]), routing)
    return _sharded(mesh, soft_over_devices(groups, experts), PartitionSpec(ROW_AXES))(x, by_token, weights)
  return _sharded(mesh, _wide_groups(groups, x.shape, experts), PartitionSpec())(x, routing, weights)


def _is_local(groups: Groups, shape: tuple[int, ...], shards: int) -> bool:
  """Whether every device holds whole groups."""
  batch, length, _ = shape
  return not groups.by_position and (batch // shards * length) % groups.size == 0


def _travel(tokens: jax.Array, routing: Routing, slots: Callable, ragged: Callable) -> jax.Array:
  """Whole groups `[G, n, d]`; `slots` and `ragged` lead to the experts and back, wherever they are."""
  n = tokens.shape[1]
  match routing:
    case SlotRouting():
      return local.combine_slots(slots(local.dispatch_slots(tokens, routing)), routing, n)
    case SoftRouting():
      return local.combine_soft(slots(local.dispatch_soft(tokens, routing)), routing)
    case RaggedRouting():
      return ragged(tokens.reshape(-1, tokens.shape[-1]), of_groups(routing, n)).reshape(tokens.shape)


def _on_one_device(tokens: jax.Array, routing: Routing, experts: ExpertFunctions, weights: Any) -> jax.Array:
  def ragged(tokens: jax.Array, assigned: Assignments) -> jax.Array:
    return experts.ragged(weights, tokens, assigned.row, assigned.weight, assigned.sizes)

  return _travel(tokens, routing, functools.partial(experts.slots, weights), ragged)


def _sharded(mesh: AbstractMesh, on_device: Callable, routing: PartitionSpec) -> Callable:
  """`on_device(x, routing, weights)` on every device's rows and experts, summed over the shares of their width."""

  def run(x, routing, weights):
    return on_device(x, routing, weights)[None]

  mapped = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(PartitionSpec(ROW_AXES), routing, PartitionSpec("expert", None, "model")),
    out_specs=PartitionSpec("model", ROW_AXES),
    check_vma=False,
  )
  # Each share of an expert's width gives a part of its output. Combining is linear, so the sum may wait for the end,
  # where it is of tokens, not of slots; outside, because inside its transpose would sum a second time.
  return lambda *arguments: mapped(*arguments).sum(axis=0)


def _local_groups(groups: Groups, experts: ExpertFunctions) -> Callable:
  def on_device(x, routing, weights):
    tokens = groups.cut(x)
    if jax.lax.axis_size("expert") == 1:
      return _on_one_device(tokens, routing, experts, weights).reshape(x.shape)

    def slots(inputs: jax.Array) -> jax.Array:
      """`[E, R, d]` of all experts, to the devices that hold them, through them, and back."""
      arrived = jax.lax.all_to_all(inputs, "expert", split_axis=0, concat_axis=1, tiled=True)
      return jax.lax.all_to_all(experts.slots(weights, arrived), "expert", split_axis=1, concat_axis=0, tiled=True)

    def ragged(tokens: jax.Array, assigned: Assignments) -> jax.Array:
      return in_rounds(tokens, assigned, experts.ragged, weights)

    return _travel(tokens, routing, slots, ragged).reshape(x.shape)

  return on_device


def _wide_groups(groups: Groups, shape: tuple[int, ...], experts: ExpertFunctions) -> Callable:
  batch, length, _ = shape

  def on_device(x, routing, weights):
    tokens = x.reshape(-1, x.shape[-1])
    flat = groups.cut(jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length))
    first = jax.lax.axis_index(ROW_AXES) * len(tokens)
    return in_rounds(tokens, of_rows(routing, flat, first, len(tokens)), experts.ragged, weights).reshape(x.shape)

  return on_device
