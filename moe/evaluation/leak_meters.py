"""Leak meters: does an output depend on what it must not see? They count outputs that change in any bit.

They take any function from an array `[B, T, ...]` (token ids, or vectors) to an array `[B, T, ...]`: a router, a layer,
a whole model. The function must be deterministic; close it over a fixed key if it draws random numbers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Sequences = Callable[[jax.Array], jax.Array]


def future_leak(function: Sequences, inputs: jax.Array, position: int, key: jax.Array) -> float:
  """Fraction of the outputs up to `position` that change when the same sequence's later inputs do.

  One sequence is changed at a time, with the others fixed: `company_leak` finds what leaks through other sequences.

  Args:
    function: from `[B, T, ...]` to `[B, T, ...]`, deterministic.
    inputs: `[B, T, ...]`.
    position: the last position that keeps its input; 0 <= position < T - 1.
    key: PRNG key of the replacement inputs, which are drawn from all positions of `inputs`.
  """
  batch, length = inputs.shape[:2]
  if not 0 <= position < length - 1:
    raise ValueError(f"position = {position}: expected at least 0 and at most {length - 2}, so that a future is left")
  replaced = jnp.where(_axes(jnp.arange(length)[None, :] > position, inputs), _resampled(inputs, key), inputs)
  before = function(inputs)
  changed = [_changed(before, function(inputs.at[row].set(replaced[row])))[row, : position + 1] for row in range(batch)]
  return float(np.mean(changed))


def company_leak(function: Sequences, inputs: jax.Array, key: jax.Array) -> float:
  """Fraction of a sequence's outputs that change when all other sequences of the batch are replaced.

  Args:
    function: from `[B, T, ...]` to `[B, T, ...]`, deterministic; B >= 2.
    inputs: `[B, T, ...]`.
    key: PRNG key of the replacement inputs, which are drawn from all positions of `inputs`.
  """
  batch = inputs.shape[0]
  if batch < 2:
    raise ValueError(f"a batch of {batch}: expected at least 2 sequences, for one has no company")
  replaced, before = _resampled(inputs, key), function(inputs)
  changed = [_changed(before, function(replaced.at[row].set(inputs[row])))[row] for row in range(batch)]
  return float(np.mean(changed))


def _resampled(inputs: jax.Array, key: jax.Array) -> jax.Array:
  """Every position replaced by one drawn from the whole array: plausible inputs of any dtype."""
  rows = inputs.reshape((-1, *inputs.shape[2:]))
  return rows[jax.random.randint(key, inputs.shape[:2], 0, rows.shape[0])]


def _axes(mask: jax.Array, like: jax.Array) -> jax.Array:
  return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def _changed(before: jax.Array, after: jax.Array) -> np.ndarray:
  """Bool `[B, T]`, positions whose outputs differ in any bit."""
  bits = [np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape[:2], -1) for x in (before, after)]
  return (bits[0] != bits[1]).any(-1)
