"""Dispatch and combine on one device: a gather to the experts, a weighted scatter-add back, both O(tokens).

Experts see the slots of all groups side by side, `[E, R, d]` with R = G * C rows, so each expert is one matrix product.
Ragged assignments are merged into one run per expert; the experts gather and scatter their own tokens block by block,
because a buffer for every possible assignment would cost more than the actual ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.experts.kernels.dropout import HiddenDropout, named
from moe.experts.kernels.names import ragged_names, slot_names, soft_names
from moe.experts.kernels.runs import runs_by_expert
from moe.experts.network import Experts, Weights
from moe.experts.soft import combine_soft, dispatch_soft
from moe.routing.types import RaggedRouting, Routing, SlotRouting, SoftRouting


def one_device(
  tokens: jax.Array, routing: Routing, experts: Experts, weights: Weights, dropout: HiddenDropout | None = None
) -> jax.Array:
  """Each token's weighted sum of its experts' outputs, `[G, n, d]` to `[G, n, d]`; `weights` are those of `experts`."""

  def slots(inputs: jax.Array, names: jax.Array | None) -> jax.Array:
    return experts.slots(weights, inputs, named(dropout, names))

  def ragged(tokens: jax.Array, routing: RaggedRouting) -> jax.Array:
    runs = runs_by_expert(routing, tokens.shape[1])
    drops = dropout and named(dropout, ragged_names(dropout.names, runs[0], runs[2]))
    return experts.ragged(weights, tokens.reshape(-1, tokens.shape[-1]), *runs, dropout=drops).reshape(tokens.shape)

  return dispatch_and_combine(tokens, routing, slots, ragged, None if dropout is None else dropout.names)


def dispatch_and_combine(
  tokens: jax.Array, routing: Routing, slots: Callable, ragged: Callable, names: jax.Array | None = None
) -> jax.Array:
  """Each token's weighted sum of its experts' outputs, wherever the experts are: `[G, n, d]` to `[G, n, d]`.

  Args:
    tokens: `[G, n, d]`.
    routing: of these groups.
    slots: maps slots `[E, R, d]` and their names to the experts' outputs of the same shape.
    ragged: maps tokens and a ragged routing to the tokens' weighted sums.
    names: int32 `[G, n]`, of the tokens, for dropout; None for none.
  """
  match routing:
    case SlotRouting():
      rows, _ = _rows_by_expert(routing, tokens.shape[1])
      called = None if names is None else slot_names(names, rows)
      return combine_slots(slots(dispatch_slots(tokens, routing), called), routing, tokens.shape[1])
    case SoftRouting():
      called = None if names is None else soft_names(names[:, 0], jnp.arange(routing.dispatch.shape[2]), routing)
      return combine_soft(slots(dispatch_soft(tokens, routing), called), routing)
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


def _rows_by_expert(routing: SlotRouting, n: int) -> tuple[jax.Array, jax.Array]:
  """Indices into the flattened `[G * n]` tokens and weights, both `[E, G * C]`; empty slots index out of range."""
  groups, experts, _ = routing.token.shape
  first = jnp.arange(groups, dtype=jnp.int32)[:, None, None] * n
  rows = jnp.where(routing.token < n, routing.token + first, groups * n)  # [G, E, C]
  return rows.swapaxes(0, 1).reshape(experts, -1), routing.weight.swapaxes(0, 1).reshape(experts, -1)
