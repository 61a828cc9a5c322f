"""RMSNorm (Zhang and Sennrich 2019) as in T5: no mean is subtracted and no bias is added."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
  """`x / sqrt(mean(x^2) + epsilon) * scale`, computed in float32 and returned in the dtype of `x`."""

  def __init__(self, d_model: int, epsilon: float = 1e-6):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., d]` to `[..., d]`."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    return (wide * inverse * self.scale[...]).astype(x.dtype)
