"""E feed-forward networks side by side: weights `[E, d, f]` and `[E, f, d]`, no biases."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.grouped_matmul import grouped_matmul

FeedForward = Literal["gelu", "relu", "geglu", "swiglu"]


class Experts(nnx.Module):
  """E independent feed-forward networks (Zhou et al. 2022, eq. 3: `gelu(x W1) W2`; gated forms as in T5 1.1).

  Attributes:
    up: `[E, d, f]`; gate: the same, for gated forms only; down: `[E, f, d]`.
  """

  def __init__(
    self, num_experts: int, d_model: int, d_ff: int, feed_forward: FeedForward, dtype: jnp.dtype, *, rngs: nnx.Rngs
  ):
    self.feed_forward, self.dtype = feed_forward, dtype

    def weights(fan_in: int, fan_out: int) -> nnx.Param:
      init = jax.nn.initializers.normal(fan_in**-0.5)
      return nnx.Param(init(rngs.params(), (num_experts, fan_in, fan_out), jnp.float32))

    self.up = weights(d_model, d_ff)
    self.gate = weights(d_model, d_ff) if feed_forward in ("geglu", "swiglu") else None
    self.down = weights(d_ff, d_model)

  def slots(self, inputs: jax.Array) -> jax.Array:
    """Expert e on its own rows: `[E, R, d]` to `[E, R, d]`."""
    return self._apply(inputs, lambda x, w: jnp.einsum("erd,edf->erf", x, w))

  def ragged(self, inputs: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows sorted by expert, `[A, d]`, `sizes [E]` of them each; rows past the last run come back as zeros."""
    return self._apply(inputs, lambda x, w: grouped_matmul(x, w, sizes))

  def _apply(self, inputs, product):
    x = inputs.astype(self.dtype)
    up = product(x, self.up[...].astype(self.dtype))
    match self.feed_forward:
      case "gelu":
        hidden = jax.nn.gelu(up)
      case "relu":
        hidden = jax.nn.relu(up)
      case "geglu":
        hidden = jax.nn.gelu(product(x, self.gate[...].astype(self.dtype))) * up
      case "swiglu":
        hidden = jax.nn.silu(product(x, self.gate[...].astype(self.dtype))) * up
    return product(hidden, self.down[...].astype(self.dtype))
