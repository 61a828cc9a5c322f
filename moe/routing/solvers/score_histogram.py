"""The distribution of each expert's scores over past batches, as a histogram of their log-odds."""

import jax
import jax.numpy as jnp

BINS, LIMIT = 256, 12.0  # from log-odds -12 to 12: scores from 6e-6 to 1 - 6e-6, the others in the outermost bins


def histogram(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Float32 `[E, BINS]`, the share of the real tokens in each bin; all 0 if there are none.

  Args:
    scores: float32 `[..., n, E]` in [0, 1].
    mask: bool `[..., n]`.
  """
  num_experts = scores.shape[-1]
  at = jnp.minimum(_in_bins(scores).astype(jnp.int32), BINS - 1).reshape(-1, num_experts)
  real = mask.reshape(-1, 1).astype(jnp.float32)
  counts = jnp.zeros((num_experts, BINS), jnp.float32).at[jnp.arange(num_experts), at].add(real)
  return counts / jnp.maximum(real.sum(), 1.0)


def share_above(scores: jax.Array, histogram: jax.Array) -> jax.Array:
  """Float32 `[..., E]` in [0, 1]: the share of a histogram above each score, linear within a bin; 0 for an empty one.

  Args:
    scores: float32 `[..., E]` in [0, 1].
    histogram: float32 `[E, BINS]`, of any scale.
  """
  total = histogram.sum(-1, keepdims=True)
  share = histogram / jnp.where(total > 0, total, 1.0)
  above = jnp.pad(jnp.cumsum(share[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
  edges = jnp.arange(BINS + 1, dtype=jnp.float32)
  return jax.vmap(lambda at, values: jnp.interp(at, edges, values), (-1, 0), -1)(_in_bins(scores), above)


def _in_bins(scores: jax.Array) -> jax.Array:
  """A score's coordinate in bins, from 0 to BINS."""
  log_odds = jnp.clip(jnp.log(scores) - jnp.log1p(-scores), -LIMIT, LIMIT)
  return (log_odds + LIMIT) * (BINS / (2 * LIMIT))
