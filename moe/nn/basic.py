"""What every layer is made of: normal parameters, flattened products, dropout from explicit keys."""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.parallel.sharding import Axes, whole


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: Axes = ()) -> nnx.Param:
  """A float32 parameter drawn from a normal distribution of the given standard deviation, its axes named for a mesh."""
  return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def matmul(x: jax.Array, weight: nnx.Param, dtype: jnp.dtype) -> jax.Array:
  """`[..., d] @ [d, f]` in `dtype`. XLA's CPU backend takes 1.7 x as long for a 3-D left side, hence the flattening."""
  kernel = whole(weight, dtype)
  return (x.astype(dtype).reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); the identity without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split(key: jax.Array | None, count: int) -> list[jax.Array] | list[None]:
  """`count` independent keys, or as many Nones."""
  return [None] * count if key is None else list(jax.random.split(key, count))
