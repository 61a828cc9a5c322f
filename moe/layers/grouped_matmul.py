"""Rows sorted by expert times each expert's own matrix, at a cost linear in the rows on every platform."""

import jax
import jax.numpy as jnp

_LARGEST_BLOCK = 128


def grouped_matmul(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
  """`out[i] = rows[i] @ weights[e(i)]`, where the first `sizes[0]` rows belong to expert 0 and so on.

  Args:
    rows: `[A, d]`, sorted by expert.
    weights: `[E, d, f]`.
    sizes: int32 `[E]`, their sum at most A.

  Returns:
    `[A, f]`; zeros for rows past the last expert's.
  """
  return jax.lax.platform_dependent(rows, weights, sizes, tpu=jax.lax.ragged_dot, default=blocked_matmul)


def blocked_matmul(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
  """`grouped_matmul` for platforms whose `ragged_dot` is a masked dense product over all experts.

  Every expert's run is padded to whole blocks, so that one block meets one matrix: at most `E` blocks are wasted,
  whatever the sizes, and shapes are static.
  """
  count, experts = rows.shape[0], weights.shape[0]
  block = min(_LARGEST_BLOCK, max(8, 1 << (max(count // experts, 1) - 1).bit_length()))
  blocks = (count + min(experts, count) * (block - 1)) // block

  ends = jnp.cumsum(sizes)
  block_ends = jnp.cumsum(-(-sizes // block))
  expert = jnp.minimum(jnp.searchsorted(block_ends, jnp.arange(blocks), side="right"), experts - 1)
  within = jnp.arange(blocks) - (block_ends[expert] - -(-sizes[expert] // block))
  row = (ends[expert] - sizes[expert] + within * block)[:, None] + jnp.arange(block)
  row = jnp.where(row < ends[expert][:, None], row, count)

  padded = rows.at[row].get(mode="fill", fill_value=0)
  product = jnp.einsum("jbd,jdf->jbf", padded, weights[expert])
  return jnp.zeros((count, weights.shape[-1]), product.dtype).at[row].set(product, mode="drop", unique_indices=True)
