"""Streams of random numbers by name."""

import zlib
from collections.abc import Callable

import jax
from flax import nnx


def named_streams(rngs: nnx.Rngs) -> Callable[[str], nnx.Rngs]:
  """A stream for each part of a module, from the part's name.

  A module draws one number of its own stream and gives every part a stream by name. What a part draws, or whether it is
  there, then changes no other part: two models that differ in the router alone begin with the same other parameters.
  """
  key = rngs.params()
  return lambda name: nnx.Rngs(jax.random.fold_in(key, zlib.crc32(name.encode())))
