"""Rows sorted by expert times each expert's own matrix, at a cost linear in the rows on every platform."""

import jax


def grouped_matmul(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
  """`out[i] = rows[i] @ weights[e(i)]`, where the first `sizes[0]` rows belong to expert 0 and so on.

  Args:
    rows: `[A, d]`, sorted by expert.
    weights: `[E, d, f]`.
    sizes: int32 `[E]`, their sum at most A.

  Returns:
    `[A, f]`; zeros for rows past the last expert's.
  """
  return jax.lax.ragged_dot(rows, weights, sizes)
