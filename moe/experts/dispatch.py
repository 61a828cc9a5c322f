"""Dispatch and combine on one device: a gather to the experts, a weighted scatter-add back, both O(tokens).

Experts see the slots of all groups side by side, `[E, R, d]` with R = G * C rows, so each expert is one matrix product.
Ragged assignments are merged into one run per expert; the experts gather and scatter their own tokens block by block,
because a buffer for every possible assignment would cost more than the actual ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.experts.kernels.runs import runs_by_expert
from moe.experts.network import Experts, Weights
from moe.routing.types import RaggedRouting, Routing, SlotRouting, SoftRouting


def one_device(tokens: jax.Array, routing: Routing, experts: Experts, weights: Weights) -> jax.Array:
  """Each token's weighted sum of its experts' outputs, `[G, n, d]` to `[G, n, d]`; `weights` are those of `experts`."""

  def slots(inputs: jax.Array) -> jax.Array:
    return experts.slots(weights, inputs)

  def ragged(tokens: jax.Array, routing: RaggedRouting) -> jax.Array:
    flat = tokens.reshape(-1, tokens.shape[-1])
    return experts.ragged(weights, flat, *runs_by_expert(routing, tokens.shape[1])).reshape(tokens.shape)

  return dispatch_and_combine(tokens, routing, slots, ragged)


def dispatch_and_combine(tokens: jax.Array, routing: Routing, slots: Callable, ragged: Callable) -> jax.Array:
  """Each token's weighted sum of its experts' outputs, wherever the experts are: `[G, n, d]` to `[G, n, d]`.

  Args:
    tokens: `[G, n, d]`.
    routing: of these groups.
    slots: maps slots `[E, R, d]` to the experts' outputs of the same shape.
    ragged: maps tokens and a ragged routing to the tokens' weighted sums.
  """
  match routing:
    case SlotRouting():
      return combine_slots(slots(dispatch_slots(tokens, routing)), routing, tokens.shape[1])
    case SoftRouting():
      return combine_soft(slots(dispatch_soft(tokens, routing)), routing)
    case RaggedRouting():
      return ragged(tokens, routing)


def dispatch_slots(tokens: jax.Array, routing: SlotRouting) -> jax.Array:
  """Tokens `[G, n, d]` to expert inputs `[E, G * C, d]`; empty slots are zero."""
  rows, _ = _rows_by_expert(routing, tokens.shape[1])
  return tokens.reshape(-1, tokens.shape[-1]).at[rows].get(mode="fill", fill_value=0)


@jax.named_scope("combine")
def combine_slots(outputs: jax.Array, routing: SlotRouting, n: int) -> jax.Array:
  """Expert outputs `[E, G * C, d]` to `[G, n, d]`: each token's weighted sum over its slots, 0 if it has none."""
  rows, weight = _rows_by_expert(routing, n)
  groups, width = routing.token.shape[0], outputs.shape[-1]
  weighted = outputs * weight[..., None].astype(outputs.dtype)
  summed = jnp.zeros((groups * n, width), outputs.dtype).at[rows].add(weighted, mode="drop")  # [G * n, d]
  return summed.reshape(groups, n, width)


def dispatch_soft(tokens: jax.Array, routing: SoftRouting) -> jax.Array:
  """Tokens `[G, n, d]` to slot mixtures `[E, G * P, d]`: one matrix product per group for any number of experts."""
  groups, n, experts, slots = routing.dispatch.shape
  dispatch = routing.dispatch.reshape(groups, n, -1).astype(tokens.dtype)  # [G, n, E * P]
  mixed = _each_group(lambda weight, x: weight.T @ x, dispatch, tokens).reshape(groups, experts, slots, -1)
  return mixed.swapaxes(0, 1).reshape(experts, groups * slots, -1)


@jax.named_scope("combine")
def combine_soft(outputs: jax.Array, routing: SoftRouting) -> jax.Array:
  """Slot outputs `[E, G * P, d]` to token mixtures `[G, n, d]`."""
  groups, n, experts, slots = routing.combine.shape
  by_group = outputs.reshape(experts, groups, slots, -1).swapaxes(0, 1).reshape(groups, experts * slots, -1)
  combine = routing.combine.reshape(groups, n, -1).astype(outputs.dtype)  # [G, n, E * P]
  return _each_group(jnp.matmul, combine, by_group)


def _each_group(product: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
  """`product` for each group; a single group drops the axis G, which would make CPUs a third slower."""
  return product(a[0], b[0])[None] if len(a) == 1 else jax.vmap(product)(a, b)


def _rows_by_expert(routing: SlotRouting, n: int) -> tuple[jax.Array, jax.Array]:
  """Indices into the flattened `[G * n]` tokens and weights, both `[E, G * C]`; empty slots index out of range."""
  groups, experts, _ = routing.token.shape
  first = jnp.arange(groups, dtype=jnp.int32)[:, None, None] * n
  rows = jnp.where(routing.token < n, routing.token + first, groups * n)  # [G, E, C]
  return rows.swapaxes(0, 1).reshape(experts, -1), routing.weight.swapaxes(0, 1).reshape(experts, -1)
