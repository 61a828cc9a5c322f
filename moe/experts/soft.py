"""Dispatch and combine of soft routing: two matrix products per group."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.routing.types import SoftRouting


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
