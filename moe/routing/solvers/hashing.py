"""An integer hash that NumPy and JAX compute identically, so that offline tables and layers agree on any machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # NumPy or JAX

GOLDEN = np.uint32(0x9E3779B1)  # 2^32 divided by the golden ratio, rounded to an odd number


def mix(x: Array) -> Array:
  """MurmurHash3's finaliser (Appleby 2011): a bijection of uint32 in which every bit of `x` reaches every other."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def hash_buckets(keys: Sequence[Array], buckets: int, hashes: int, seed: int) -> Array:
  """Independent hashes of a tuple of integers: `h <- mix(h * golden + key)` over the hash's number and the keys.

  Args:
    keys: int32 `[...]` each, of equal shape; their order matters.
    buckets: B.
    hashes: N.
    seed: the initial h, from 0 to 2^32 - 1; other seeds give other hashes.

  Returns:
    int32 `[N, ...]`, from 0 to B - 1.
  """
  number = np.arange(hashes, dtype=np.uint32).reshape(-1, *[1] * keys[0].ndim)
  state = mix(np.full_like(number, seed))
  for key in (number, *keys):
    state = mix(state * GOLDEN + key.astype(np.uint32))
  return (state % np.uint32(buckets)).astype(np.int32)
