"""The norms before each branch of a block: T5's RMSNorm, and the LayerNorm of Vision Transformers."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Norm = Literal["rms", "layer"]


def make_norm(kind: Norm, d_model: int, epsilon: float) -> "RMSNorm | LayerNorm":
  """The norm of this kind for vectors of this width."""
  return RMSNorm(d_model, epsilon) if kind == "rms" else LayerNorm(d_model, epsilon)


class RMSNorm(nnx.Module):
  """Zhang and Sennrich 2019: no mean is subtracted and no bias is added.

  `x / sqrt(mean(x^2) + epsilon) * scale`, computed in float32 and returned in the dtype of `x`.
  """

  def __init__(self, d_model: int, epsilon: float = 1e-6):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., d]` to `[..., d]`."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
    return (wide * inverse * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
  """Ba et al. 2016: `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, in float32 as `RMSNorm`."""

  def __init__(self, d_model: int, epsilon: float = 1e-6):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., d]` to `[..., d]`."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
    return (centred * inverse * self.scale[...] + self.bias[...]).astype(x.dtype)
