"""Ragged experts by custom kernels: each expert's run is padded to full tiles of rows, all multiplied by one kernel.

A tile belongs to one expert, so kernels need no masks; padding is rows of zeros in the last tile of a run. Tiles beyond
the last run are room for less balanced routings: kernels skip them, so their contents are undefined; only elementwise
functions read them, and their results are dropped.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.experts.kernels import grouped as grouped_network
from moe.experts.kernels.dropout import picked, with_dropout
from moe.experts.kernels.rows import NOWHERE, assigned, fetch, mark


class Kernels(NamedTuple):
  """A platform's grouped products; `tiles` says which expert each tile of rows belongs to.

  Attributes:
    product: `(tiles, x [T * R, d], w [E, d, f], transposed, dtype)` to `[T * R, f]` of `dtype`: each tile's rows times
      its expert's matrix. If transposed, `[T * R, f]` to `[T * R, d]`.
    outer: `(tiles, a [T * R, d], b [T * R, f], dtype)` to `[E, d, f]`: the sum over each expert's rows of `a^T b`.
    rows: R if experts average `8 * R` rows or more, so that a sixteenth is padding; otherwise R / 2 is used.
  """

  product: Callable
  outer: Callable
  rows: int


class Tiles(NamedTuple):
  """The tiles of a routing; T is an upper bound on their number.

  Attributes:
    expert: int32 `[T]`, ascending.
    first: int32 `[E]`, each expert's first tile. Every expert has at least one, if only of padding.
    used: int32 scalar, the actual number of tiles.
    assignment: int32 `[T * R]`, index of each row among the assignments; out of range for padding.
  """

  expert: jax.Array
  first: jax.Array
  used: jax.Array
  assignment: jax.Array


def cut(sizes: jax.Array, assignments: int, rows: int) -> Tiles:
  """Runs of `sizes [E]` among the assignments, cut into tiles of `rows`."""
  bound = assignments // rows + len(sizes)
  tiles = jnp.maximum(-(-sizes // rows), 1)
  ends = jnp.cumsum(tiles)
  expert = jnp.repeat(jnp.arange(len(sizes), dtype=jnp.int32), tiles, total_repeat_length=bound)
  within = (jnp.arange(bound) - (ends - tiles)[expert])[:, None] * rows + jnp.arange(rows)  # [T, R]
  assignment = (jnp.cumsum(sizes) - sizes)[expert][:, None] + within
  assignment = jnp.where(within < sizes[expert][:, None], assignment, NOWHERE)
  return Tiles(expert, ends - tiles, ends[-1], assignment.reshape(-1))


def forward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down, biases=(), dropout=None):
  """See `ragged_feed_forward`."""
  tiles, row, weights = _tiles(kernels, rows, weight, sizes)
  activation = _activation(tiles, activation, biases, dropout)

  def product(x, w, transposed, dtype):
    return kernels.product(tiles, x, w, transposed, dtype)

  with _mark(tiles):
    y = grouped_network.output(product, activation, fetch(tokens, row), weights, ups, down)
  return jnp.zeros_like(tokens, jnp.float32).at[row].add(y, mode="drop").astype(tokens.dtype)


def backward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down, biases, gradient, dropout=None):
  """Gradients with respect to tokens, weight, ups, down and biases, each in its array's dtype."""
  tiles, row, weights = _tiles(kernels, rows, weight, sizes)
  activation = _activation(tiles, activation, biases, dropout)

  def product(x, w, transposed, dtype):
    return kernels.product(tiles, x, w, transposed, dtype)

  def outer(a, b):
    return kernels.outer(tiles, a, b, down.dtype)

  with _mark(tiles):
    d_x, d_weight, d_ups, d_down, before = grouped_network.gradients(
      product, outer, activation, fetch(tokens, row), fetch(gradient, row), weights, ups, down
    )
  d_tokens = jnp.zeros_like(tokens, jnp.float32).at[row].add(d_x, mode="drop").astype(tokens.dtype)
  d_weight = jnp.zeros_like(weight).at[tiles.assignment].set(d_weight, mode="drop")
  return d_tokens, d_weight, d_ups, d_down, [_sums(tiles, d).astype(b.dtype) for d, b in zip(before, biases)]


def cost(rows: int, matrices: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
  """The compiler's cost estimate for multiplying each of `rows` rows by one of the matrices `[E, d, f]`."""
  _, d, f = matrices.shape
  size = (matrices.size + rows * (d + f)) * matrices.dtype.itemsize
  return pl.CostEstimate(flops=2 * rows * d * f, bytes_accessed=size, transcendentals=0)


def _tiles(kernels, rows, weight, sizes) -> tuple[Tiles, jax.Array, jax.Array]:
  """The tiles, and the token and weight of each of their rows."""
  wide = len(rows) >= 8 * kernels.rows * len(sizes)
  tiles = cut(sizes, len(rows), kernels.rows if wide else kernels.rows // 2)
  return tiles, *assigned(rows, weight, tiles.assignment)


def _activation(tiles: Tiles, activation, biases, dropout) -> Callable:
  """`activation` with the biases `[E, f]` and the dropout of each row."""
  by_row = [jnp.repeat(bias[tiles.expert], len(tiles.assignment) // len(tiles.expert), axis=0) for bias in biases]
  return with_dropout(grouped_network.with_biases(activation, by_row), picked(dropout, tiles.assignment))


def _sums(tiles: Tiles, rows: jax.Array) -> jax.Array:
  """float32 `[E, f]`: the sums of each expert's rows, of which padding is 0."""
  count = len(tiles.expert)
  by_tile = rows.reshape(count, -1, rows.shape[-1]).sum(1, dtype=jnp.float32)
  used = jnp.arange(count) < tiles.used
  by_tile = jnp.where(used[:, None], by_tile, 0)
  return jnp.zeros((len(tiles.first), rows.shape[-1])).at[tiles.expert].add(by_tile)


def _mark(tiles: Tiles) -> contextlib.AbstractContextManager:
  """The kernels' stated cost is that of all T tiles; every expert pads at most one tile."""
  rows = len(tiles.assignment)
  return mark(rows, len(tiles.first) * (rows // len(tiles.expert)))
