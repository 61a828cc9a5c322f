"""Experts that cost next to nothing, beside the ordinary ones (Jin et al. 2024, MoE++, arXiv 2410.07348).

A zero expert gives 0, a copy expert its input, and a constant expert a1 x + a2 v, with (a1, a2) = softmax(x W) and a
vector v of its own. All are O(d) per token. They act where the token is: nothing of them is dispatched, and on a mesh
every device has all of them.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.nn.linear import KernelInit, matmul, normal
from moe.parallel.sharding import whole
from moe.routing.router import FreeCounts


class FreeExperts(nnx.Module):
  """The zero, copy and constant experts of a layer, J of them constant ones.

  Attributes:
    mix: W of all constant experts, `[d, 2 J]`, two columns each; None without any.
    constant: v, `[J, d]`, of the size of a normalised token; None without any.
  """

  def __init__(self, counts: FreeCounts, d_model: int, dtype: jnp.dtype, init: KernelInit, *, rngs: nnx.Rngs):
    self.counts, self.dtype, constants = counts, dtype, counts.constant
    self.mix = init(rngs, (d_model, 2 * constants), d_model, ("embed", None)) if constants else None
    self.constant = normal(rngs, (constants, d_model), 1.0, (None, "embed")) if constants else None

  @jax.named_scope("experts")
  def __call__(self, x: jax.Array, gates: jax.Array) -> jax.Array:
    """Each token's sum of their outputs, `[B, T, d]`, times the `gates` `[B, T, Z]`: zero, copy, then constant ones."""
    zeros, copies, _ = self.counts
    x, of_constants = x.astype(self.dtype), gates[..., zeros + copies :]  # [B, T, J]
    of_token, y = gates[..., zeros : zeros + copies].sum(-1, keepdims=True), jnp.zeros((), self.dtype)
    if self.mix is not None and self.constant is not None:
      logits = matmul(x, self.mix, self.dtype).astype(jnp.float32).reshape(*of_constants.shape, 2)
      shares = of_constants[..., None] * jax.nn.softmax(logits)  # [B, T, J, 2]
      of_token += shares[..., 0].sum(-1, keepdims=True)
      y = shares[..., 1].astype(self.dtype) @ whole(self.constant, self.dtype)
    return of_token.astype(self.dtype) * x + y
