"""Dropout from explicit keys."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); the identity without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array] | list[None]:
  """`count` independent keys, or as many Nones without a key."""
  return [None] * count if key is None else list(jax.random.split(key, count))
