"""Dropout from explicit keys: a hash of the key and of an element's place decides, which costs a fraction of a PRNG.

The place is that in the whole array, so the elements that are dropped are the same on any mesh.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from moe.routing.solvers.hashing import GOLDEN, mix


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); the identity without a key."""
  if key is None or rate == 0:
    return x
  *rows, units = x.shape
  names = jnp.arange(math.prod(rows), dtype=jnp.int32).reshape(rows)
  keep = kept_units(jax.random.bits(key, (2,)), names, jnp.arange(units), rate)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def kept_units(key: jax.Array, rows: jax.Array, units: jax.Array, rate: float) -> jax.Array:
  """Bool `[..., u]`, which units of each row are kept.

  Args:
    key: uint32 `[2]`.
    rows: int32 `[...]`, the rows' names.
    units: int32 `[u]`, the units' numbers.
    rate: the probability that a unit is dropped.
  """
  row = mix(rows.astype(jnp.uint32) * GOLDEN + key[0])
  bits = mix(mix(row[..., None] * GOLDEN + units.astype(jnp.uint32)) ^ key[1])
  return bits >= np.uint32(rate * 2**32)


def split_key(key: jax.Array | None, count: int) -> list[jax.Array] | list[None]:
  """`count` independent keys, or as many Nones without a key."""
  return [None] * count if key is None else list(jax.random.split(key, count))
