"""The assignments of a ragged routing as one run per expert, over all groups: what the kernels take."""

import jax
import jax.numpy as jnp

from moe.routing.types import RaggedRouting


def runs_by_expert(routing: RaggedRouting, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The assignments of all groups as one run per expert: rows of the flattened `[G * n]` tokens, weights, sizes.

  Returns:
    int32 `[G * A]`, float32 `[G * A]`, int32 `[E]`; entries beyond the last run are out of range and have weight 0.
  """
  groups, count = routing.token.shape
  first = jnp.arange(groups, dtype=jnp.int32)[:, None] * n
  rows = jnp.where(routing.token < n, routing.token + first, groups * n)  # [G, A]
  sizes = routing.group_sizes.sum(axis=0)
  if groups == 1:
    return rows[0], routing.weight[0], sizes
  # A run of group g moves to the end of its expert's runs from earlier groups.
  ends = jnp.cumsum(routing.group_sizes, axis=1)  # [G, E]
  to = (jnp.cumsum(sizes) - sizes) + jnp.cumsum(routing.group_sizes, axis=0) - routing.group_sizes
  index = jnp.arange(count, dtype=jnp.int32)
  expert = jax.vmap(lambda e: jnp.searchsorted(e, index, side="right"))(ends)  # [G, A]
  shift = jnp.take_along_axis(to - (ends - routing.group_sizes), jnp.minimum(expert, ends.shape[1] - 1), axis=1)
  target = jnp.where(index < ends[:, -1:], index + shift, groups * count)
  merged_rows = jnp.full(groups * count, groups * n, jnp.int32).at[target].set(rows, mode="drop")
  return merged_rows, jnp.zeros(groups * count, jnp.float32).at[target].set(routing.weight, mode="drop"), sizes
