"""The names of the experts' rows, from which dropout follows: the token, or the soft slot, and the expert."""

import jax
import jax.numpy as jnp

from moe.experts.kernels.dropout import row_names
from moe.routing.types import SoftRouting


def slot_names(tokens: jax.Array, rows: jax.Array) -> jax.Array:
  """int32 `[E, R]`, of slots that hold the `rows` `[E, R]` of the tokens named `[G, n]`; empty slots have token 0's."""
  held = tokens.reshape(-1).at[rows].get(mode="fill", fill_value=0)
  return row_names(held, jnp.arange(len(rows), dtype=jnp.int32)[:, None], len(rows))


def ragged_names(tokens: jax.Array, rows: jax.Array, sizes: jax.Array) -> jax.Array:
  """int32 `[A]`, of assignments of the `rows` `[A]` of the tokens named `[G, n]`, in runs of `sizes` `[E]`."""
  held = tokens.reshape(-1).at[rows].get(mode="fill", fill_value=0)
  expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right").astype(jnp.int32)
  return row_names(held, expert, len(sizes))


def soft_names(groups: jax.Array, experts: jax.Array, routing: SoftRouting) -> jax.Array:
  """int32 `[E', G * P]`, of the slots of groups that begin with tokens named `[G]`, at the experts numbered `[E']`."""
  num_experts, slots = routing.dispatch.shape[-2:]
  first = row_names(groups, experts[:, None], num_experts)  # [E', G]
  return (first[..., None] * slots + jnp.arange(slots, dtype=jnp.int32)).reshape(len(experts), -1)
