"""Ragged experts without a custom kernel: a loop over as many blocks of rows as each expert has.

Block widths are static, so a run is split into wide blocks, which are fast, and its remainder into narrow ones, which
waste little. The gradients of an expert's matrices are summed within its run and written once.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.experts.kernels import grouped as grouped_network
from moe.experts.kernels.dropout import picked, with_dropout
from moe.experts.kernels.rows import NOWHERE, assigned, fetch, mark

_WIDE, _NARROW = 256, 64


def forward(activation, tokens, rows, weight, sizes, ups, down, biases=(), dropout=None):
  """See `ragged_feed_forward`."""

  def expert(out, of):
    start, size, ups, down, biases = of

    def add_block(assignments, out):
      row, weights = assigned(rows, weight, assignments)
      acts = with_dropout(grouped_network.with_biases(activation, biases), picked(dropout, assignments))
      y = grouped_network.output(_product, acts, fetch(tokens, row), weights, ups, down)
      return out.at[row].add(y, mode="drop")

    return _over_run(add_block, start, size, out, len(sizes)), None

  zeros = jnp.zeros_like(tokens, jnp.float32)
  out, _ = jax.lax.scan(expert, zeros, (jnp.cumsum(sizes) - sizes, sizes, ups, down, biases))
  return out.astype(tokens.dtype)


def backward(activation, tokens, rows, weight, sizes, ups, down, biases, gradient, dropout=None):
  """Gradients with respect to tokens, weight, ups, down and biases, each in its array's dtype."""

  def expert(sums, of):
    start, size, *weights_of = of
    ups, down, biases = weights_of

    def add_block(assignments, sums):
      (d_tokens, d_weight), d_weights = sums
      row, weights = assigned(rows, weight, assignments)
      acts = with_dropout(grouped_network.with_biases(activation, biases), picked(dropout, assignments))
      *block, before = grouped_network.gradients(
        _product, _outer, acts, fetch(tokens, row), fetch(gradient, row), weights, ups, down
      )
      d_tokens = d_tokens.at[row].add(block[0], mode="drop")
      d_weight = d_weight.at[assignments].set(block[1], mode="drop")
      d_biases = [d.sum(0, dtype=jnp.float32) for d, _ in zip(before, biases)]
      return (d_tokens, d_weight), jax.tree.map(jnp.add, d_weights, [*block[2:], d_biases])

    sums, d_weights = _over_run(add_block, start, size, (sums, _zeros(weights_of)), len(sizes))
    return sums, jax.tree.map(lambda d, array: d.astype(array.dtype), d_weights, weights_of)

  of = (jnp.cumsum(sizes) - sizes, sizes, ups, down, list(biases))
  (d_tokens, d_weight), d_weights = jax.lax.scan(expert, _zeros((tokens, weight)), of)
  return d_tokens.astype(tokens.dtype), d_weight, *d_weights


def _over_run(add_block: Callable, start: jax.Array, size: jax.Array, sums, num_experts: int):
  """Applies `add_block(assignments, sums)` to each block of a run of `size` assignments; padding is out of range.

  There are `num_experts` such runs, of which the last blocks are padded.
  """
  wide = size // _WIDE * _WIDE

  def add(first, width, index, sums):
    assignments = first + index * width + jnp.arange(width)
    return add_block(jnp.where(assignments < start + size, assignments, NOWHERE), sums)

  def loop(first, width, count, sums):
    with mark(num_experts * width, num_experts * (_NARROW - 1)):
      return jax.lax.fori_loop(0, count, functools.partial(add, first, width), sums)

  sums = loop(start, _WIDE, size // _WIDE, sums)
  return loop(start + wide, _NARROW, -(-(size - wide) // _NARROW), sums)


def _zeros(arrays):
  return jax.tree.map(lambda a: jnp.zeros_like(a, jnp.float32), arrays)


def _product(rows: jax.Array, matrix: jax.Array, transposed: bool, dtype: jnp.dtype) -> jax.Array:
  subscripts = "rf,df->rd" if transposed else "rd,df->rf"
  return jnp.einsum(subscripts, rows, matrix, preferred_element_type=dtype)


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum("rd,rf->df", a, b, preferred_element_type=jnp.float32)
