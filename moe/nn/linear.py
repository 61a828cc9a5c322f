"""Normal parameters with named axes, and products with them."""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.parallel.sharding import Axes, whole


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: Axes = ()) -> nnx.Param:
  """A normally distributed float32 parameter of standard deviation `std`; `axes` name its axes for a mesh."""
  return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def matmul(x: jax.Array, weight: nnx.Param, dtype: jnp.dtype) -> jax.Array:
  """`[..., d] @ [d, f]` in `dtype`. Flattened, as XLA's CPU backend takes 1.7x as long for a 3-D left side."""
  kernel = whole(weight, dtype)
  return (x.astype(dtype).reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
