"""One device's assignments of tokens to experts, sorted by expert: what a dropless exchange sends."""

import dataclasses

import jax
import jax.numpy as jnp

from moe.experts.kernels.rows import expected_rows
from moe.experts.kernels.runs import runs_by_expert
from moe.routing.types import RaggedRouting, SlotRouting


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Assignments:
  """The first `sizes[0]` belong to expert 0, the next `sizes[1]` to expert 1, and so on; the rest is unused.

  Attributes:
    row: int32 `[A]`, index among the device's N tokens; N where unused.
    weight: float32 `[A]`.
    sizes: int32 `[E]`.
    expected: number of assignments if all devices have equally many; at most A.
  """

  row: jax.Array
  weight: jax.Array
  sizes: jax.Array
  expected: int = dataclasses.field(metadata={"static": True})


def of_groups(routing: RaggedRouting, n: int) -> Assignments:
  """The assignments of groups of `n` tokens that lie completely on this device."""
  row, weight, sizes = runs_by_expert(routing, n)
  return Assignments(row, weight, sizes, expected_rows(len(row), routing.token.shape[0] * n, len(sizes)))


def of_rows(routing: SlotRouting | RaggedRouting, flat: jax.Array, first: jax.Array, count: int) -> Assignments:
  """The assignments of this device's tokens in groups that span several devices.

  Args:
    routing: of all groups.
    flat: int32 `[G, n]`, each token's index in the batch.
    first: int32 scalar, the index of this device's first token.
    count: N, how many tokens the device has.
  """
  token, weight, sizes = _by_expert(routing, flat)
  row = token - first
  here = (row >= 0) & (row < count)
  # Compacting the local assignments keeps their order, so those of an expert stay one run.
  before = jnp.cumsum(here) - here
  index = jnp.where(here, before, len(row))
  ends = jnp.cumsum(sizes)
  through = jnp.concatenate([jnp.zeros(1, before.dtype), jnp.cumsum(here)])[ends]
  room = min(len(row), len(sizes) * count)
  return Assignments(
    row=jnp.full(room, count, jnp.int32).at[index].set(row, mode="drop"),
    weight=jnp.zeros(room, jnp.float32).at[index].set(weight, mode="drop"),
    sizes=jnp.diff(through, prepend=0),
    expected=expected_rows(-(-len(row) * count // flat.size), count, len(sizes)),
  )


def _by_expert(routing: SlotRouting | RaggedRouting, flat: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Token indices in the batch, weights, and how many each expert has; unused entries have the index `flat.size`."""
  groups, n = flat.shape
  if isinstance(routing, RaggedRouting):
    rows, weight, sizes = runs_by_expert(routing, n)
    return flat.reshape(-1).at[rows].get(mode="fill", fill_value=flat.size), weight, sizes
  number = jax.vmap(lambda numbers, token: numbers.at[token].get(mode="fill", fill_value=flat.size))(
    flat, routing.token
  )
  _, experts, slots = number.shape
  number, weight = (array.swapaxes(0, 1).reshape(-1) for array in (number, routing.weight))
  return number, weight, jnp.full(experts, groups * slots, jnp.int32)
