"""Dispatch and combine on one device: a gather in, a weighted scatter-add out, O(tokens) both.

Experts see all groups' slots side by side, `[E, R, d]` with R = G * C rows, so that each expert is one matrix product.
"""

import jax
import jax.numpy as jnp

from moe.routing.types import RaggedRouting, SlotRouting, SoftRouting


def dispatch_slots(tokens: jax.Array, routing: SlotRouting) -> jax.Array:
  """Tokens `[G, n, d]` to expert inputs `[E, G * C, d]`; empty slots are zero."""
  rows, _ = _rows_by_expert(routing, tokens.shape[1])
  return tokens.reshape(-1, tokens.shape[-1]).at[rows].get(mode="fill", fill_value=0)


def combine_slots(outputs: jax.Array, routing: SlotRouting, n: int) -> jax.Array:
  """Expert outputs `[E, G * C, d]` to `[G, n, d]`: a token's weighted sum over its slots; 0 for a token in none."""
  rows, weight = _rows_by_expert(routing, n)
  groups, width = routing.token.shape[0], outputs.shape[-1]
  weighted = outputs * weight[..., None].astype(outputs.dtype)
  summed = jnp.zeros((groups * n, width), outputs.dtype).at[rows].add(weighted, mode="drop")
  return summed.reshape(groups, n, width)


def dispatch_ragged(tokens: jax.Array, routing: RaggedRouting) -> tuple[jax.Array, jax.Array]:
  """Tokens `[G, n, d]` to rows sorted by expert `[G * A, d]` (the tail belongs to no expert) and sizes `[E]`."""
  rows, _, sizes = _rows_in_order(routing, tokens.shape[1])
  return tokens.reshape(-1, tokens.shape[-1]).at[rows].get(mode="fill", fill_value=0), sizes


def combine_ragged(outputs: jax.Array, routing: RaggedRouting, n: int) -> jax.Array:
  """Rows `[G * A, d]` in the order of `dispatch_ragged` to `[G, n, d]`."""
  rows, weight, _ = _rows_in_order(routing, n)
  groups, width = routing.token.shape[0], outputs.shape[-1]
  weighted = outputs * weight[:, None].astype(outputs.dtype)
  return jnp.zeros((groups * n, width), outputs.dtype).at[rows].add(weighted, mode="drop").reshape(groups, n, width)


def dispatch_soft(tokens: jax.Array, routing: SoftRouting) -> jax.Array:
  """Tokens `[G, n, d]` to slot mixtures `[E, G * P, d]`."""
  mixed = jnp.einsum("gnep,gnd->egpd", routing.dispatch.astype(tokens.dtype), tokens)
  return mixed.reshape(mixed.shape[0], -1, mixed.shape[-1])


def combine_soft(outputs: jax.Array, routing: SoftRouting) -> jax.Array:
  """Slot outputs `[E, G * P, d]` to token mixtures `[G, n, d]`."""
  groups, _, experts, slots = routing.combine.shape
  outputs = outputs.reshape(experts, groups, slots, -1)
  return jnp.einsum("gnep,egpd->gnd", routing.combine.astype(outputs.dtype), outputs)


def _rows_by_expert(routing: SlotRouting, n: int) -> tuple[jax.Array, jax.Array]:
  """Indices into the flattened `[G * n]` tokens and weights, both `[E, G * C]`; empty slots index out of range."""
  groups, experts, _ = routing.token.shape
  first = jnp.arange(groups, dtype=jnp.int32)[:, None, None] * n
  rows = jnp.where(routing.token < n, routing.token + first, groups * n)
  return rows.swapaxes(0, 1).reshape(experts, -1), routing.weight.swapaxes(0, 1).reshape(experts, -1)


def _rows_in_order(routing: RaggedRouting, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """As `_rows_by_expert`, for assignments of all groups merged into one run for each expert."""
  groups, assignments = routing.token.shape
  first = jnp.arange(groups, dtype=jnp.int32)[:, None] * n
  rows = jnp.where(routing.token < n, routing.token + first, groups * n).reshape(-1)
  weight, sizes = routing.weight.reshape(-1), routing.group_sizes.sum(axis=0)
  if groups == 1:
    return rows, weight, sizes
  # Group g's run for expert e starts at ends[g, e] - sizes[g, e]; a position past the last end belongs to no expert.
  ends = jnp.cumsum(routing.group_sizes, axis=1)
  expert = jax.vmap(lambda e: jnp.searchsorted(e, jnp.arange(assignments), side="right"))(ends)
  order = jnp.argsort(expert.reshape(-1), stable=True)
  return rows[order], weight[order], sizes
