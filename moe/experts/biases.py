"""Biases of the experts, with the dispatch and the kernels of experts that have none.

Tokens get extra columns, the first of which is 1, and the matrices before the activation as many rows, the first of
which is the bias: a gather, an exchange or a mixture of tokens carries the 1 along, and an empty slot has 0. What comes
after the activation is added by the routing's weights, since a token's sum of weighted biases needs no expert.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from moe.nn.linear import normal
from moe.routing import Routing, routing_weights

# Not 0, from where an optimizer with steps relative to a parameter's size would hardly move.
_STDDEV = 0.02


class Biases(nnx.Module):
  """One vector per expert before the activation, or two for gated forms, and one after the second matrix.

  Attributes:
    up: `[E, f]`; gate: the same, for gated forms only; down: `[E, d]`.
  """

  def __init__(self, num_experts: int, d_model: int, d_ff: int, gated: bool, *, rngs: nnx.Rngs):
    self.up = normal(rngs, (num_experts, d_ff), _STDDEV, ("expert", "ff"))
    self.down = normal(rngs, (num_experts, d_model), _STDDEV, ("expert", "embed"))
    self.gate = normal(rngs, (num_experts, d_ff), _STDDEV, ("expert", "ff")) if gated else None
    # As many columns as keep the alignment that kernels and matrix units ask for.
    self.columns = math.gcd(d_model, 128)

  def widened_weights(self, ups: list[jax.Array], down: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Matrices `[E, d, f]` with rows for the extra columns: `[E, d + columns, f]`."""
    biases = [bias for bias in (self.gate, self.up) if bias is not None]
    zeros = jnp.zeros((len(down), self.columns, down.shape[-1]), down.dtype)
    rows = [zeros.at[:, 0].set(bias[...].astype(down.dtype)) for bias in biases]
    return [jnp.concatenate(pair, axis=1) for pair in zip(ups, rows)], jnp.concatenate([down, zeros], axis=1)

  def widened(self, x: jax.Array) -> jax.Array:
    """Tokens `[..., d]` with the extra columns."""
    extra = jnp.zeros((*x.shape[:-1], self.columns), x.dtype).at[..., 0].set(1)
    return jnp.concatenate([x, extra], axis=-1)

  def added(self, y: jax.Array, routing: Routing) -> jax.Array:
    """Sums of experts' outputs `[G, n, d]` with the columns `[G, n, d + columns]`, and each token's weighted bias."""
    weights = routing_weights(routing, y.shape[1])  # [G, n, E]
    return y[..., : -self.columns] + (weights @ self.down[...]).astype(y.dtype)
