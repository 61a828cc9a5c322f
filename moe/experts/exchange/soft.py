"""Soft routing over groups that span several devices: every slot mixes tokens from all of them.

A device computes what its own tokens contribute to each slot. The sum over the group's devices is scattered to the
experts' devices, and the outputs of all slots, which every token mixes, are gathered by the whole group: the traffic
depends on the number of slots, not on the number of tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.config import require
from moe.experts.kernels.dropout import named
from moe.experts.kernels.names import soft_names
from moe.experts.network import Experts
from moe.routing.groups import Groups


def soft_over_devices(groups: Groups, experts: Experts) -> Callable:
  """Returns `(x, routing, weights, dropout) -> y` for one device inside `shard_map`.

  `x` is `[rows, T, d]`, the weights of `routing` are `[rows, T, E, P]`. If a group spans several rows of the mesh, each
  row computes its slots.

  Raises:
    ConfigError: when called, if the groups do not fit the mesh (`check_soft_group`).
  """

  def on_device(x, routing, weights, dropout):
    tokens = x.reshape(-1, x.shape[-1])
    dispatch, combine = (w.reshape(len(tokens), -1).astype(x.dtype) for w in (routing.dispatch, routing.combine))
    num_experts, slots = routing.dispatch.shape[2:]
    in_row, rows_each = _layout(groups.size, len(tokens))
    mine = jax.lax.axis_index("expert") * in_row // jax.lax.axis_size("expert")
    mixed = (dispatch.T @ tokens).reshape(num_experts, slots, -1)  # [E, P, d]
    # One entry for each group in this row of the mesh; this device fills its own.
    parts = jnp.zeros((num_experts, in_row, slots, x.shape[-1]), x.dtype).at[:, mine].set(mixed)
    inputs = jax.lax.psum_scatter(parts, "expert", scatter_dimension=0, tiled=True)
    if rows_each > 1:
      every = range(jax.lax.axis_size("data"))
      together = [list(every[first : first + rows_each]) for first in every[::rows_each]]
      inputs = jax.lax.psum(inputs, "data", axis_index_groups=together)
    if dropout is not None:
      every = jax.lax.axis_index("expert") * len(inputs) + jnp.arange(len(inputs))
      group = jax.lax.axis_index("data") * in_row // rows_each + jnp.arange(in_row)
      dropout = named(dropout, soft_names(group * groups.size, every, routing))
    outputs = experts.slots(weights, inputs.reshape(len(inputs), in_row * slots, -1), dropout)
    outputs = jax.lax.all_gather(outputs.reshape(inputs.shape), "expert", axis=0, tiled=True)[:, mine]
    return (combine @ outputs.reshape(num_experts * slots, -1)).reshape(x.shape)

  return on_device


def check_soft_group(size: int, shard: int, row: int) -> None:
  """Checks that a soft group lies on one device, or on whole devices that divide or fill rows of the mesh.

  Args:
    size: tokens of a group.
    shard: tokens of a device; the devices follow each other along `expert`, then along `data`.
    row: devices along the mesh axis `expert`.

  Raises:
    ConfigError: it does not; what a device adds to the slots could not be told apart by group.
  """
  devices = size // shard
  fits = size % shard == 0 and (row % devices == 0 or devices % row == 0)
  wanted = f"a divisor of the {shard} tokens of a device, or these times a divisor or a multiple of mesh.expert = {row}"
  require(fits or shard % size == 0, "group_size", size, f"expected {wanted}")


def _layout(size: int, shard: int) -> tuple[int, int]:
  """Groups per row of the mesh (along `expert`) and rows per group, if groups span several devices."""
  devices, row = size // shard, jax.lax.axis_size("expert")
  check_soft_group(size, shard, row)
  return max(1, row // devices), max(1, devices // row)
