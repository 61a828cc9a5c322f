"""Biases of the experts.

Those before the activation go with the matrices, to wherever the experts compute. The one after it is added by the
routing's weights: a token's sum of weighted biases needs no expert, only a product `[n, E] @ [E, d]`.
"""

import jax
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

  def before(self) -> list[nnx.Param]:
    """Those before the activation, in the order of its arguments."""
    return [bias for bias in (self.gate, self.up) if bias is not None]

  def after(self, routing: Routing, n: int) -> jax.Array:
    """float32 `[G, n, d]`: the weighted sum of the biases of each token's experts, in groups of n tokens."""
    return routing_weights(routing, n) @ self.down[...]
