"""Ragged experts by custom kernels: each expert's run is padded to full tiles of rows, all multiplied by one kernel.

A tile belongs to one expert, so kernels need no masks; padding is rows of zeros in the last tile of a run. Tiles beyond
the last run are room for less balanced routings: kernels skip them, so their contents are undefined; only elementwise
functions read them, and their results are dropped.

Gathers and elementwise functions do go over that room. Where there is room for every expert of every token, of which a
router may use two, the assignments are computed in as many parts as they need, of fewer rows.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.experts.kernels import grouped as grouped_network
from moe.experts.kernels.dropout import picked, with_dropout
from moe.experts.kernels.rows import NOWHERE, assigned, fetch, mark, rows_at_once


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


def cut(sizes: jax.Array, assignments: int, rows: int, first: jax.typing.ArrayLike = 0) -> Tiles:
  """Runs of `sizes [E]`, cut into tiles of `rows`; only so many assignments from the `first` on."""
  bound = assignments // rows + len(sizes)
  before = jnp.clip(jnp.cumsum(sizes) - sizes, first)
  sizes = jnp.diff(jnp.clip(jnp.cumsum(sizes) - first, 0, assignments), prepend=0)
  tiles = jnp.maximum(-(-sizes // rows), 1)
  ends = jnp.cumsum(tiles)
  expert = jnp.repeat(jnp.arange(len(sizes), dtype=jnp.int32), tiles, total_repeat_length=bound)
  within = (jnp.arange(bound) - (ends - tiles)[expert])[:, None] * rows + jnp.arange(rows)  # [T, R]
  assignment = before[expert][:, None] + within
  assignment = jnp.where(within < sizes[expert][:, None], assignment, NOWHERE)
  return Tiles(expert, ends - tiles, ends[-1], assignment.reshape(-1))


def forward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down, biases=(), dropout=None):
  """See `ragged_feed_forward`."""
  count = rows_at_once(len(rows), len(tokens), len(sizes))

  def add(first, out):
    part = _Part(kernels, activation, rows, weight, sizes, biases, dropout, first, count)
    with part.mark():
      y = grouped_network.output(part.product, part.activation, fetch(tokens, part.row), part.weight, ups, down)
    return out.at[part.row].add(y, mode="drop")

  out = jnp.zeros_like(tokens, jnp.float32)
  out = add(0, out) if count == len(rows) else _over_parts(add, sizes, count, out)
  return out.astype(tokens.dtype)


def backward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down, biases, gradient, dropout=None):
  """Gradients with respect to tokens, weight, ups, down and biases, each in its array's dtype."""
  count = rows_at_once(len(rows), len(tokens), len(sizes))
  weights = [ups, down, list(biases)]

  def gradients(first, dtype, d_tokens, d_weight):
    part = _Part(kernels, activation, rows, weight, sizes, biases, dropout, first, count)
    outer = functools.partial(part.outer, dtype)
    with part.mark():
      d_x, d_row, d_ups, d_down, before = grouped_network.gradients(
        part.product,
        outer,
        part.activation,
        fetch(tokens, part.row),
        fetch(gradient, part.row),
        part.weight,
        ups,
        down,
      )
    d_tokens = d_tokens.at[part.row].add(d_x, mode="drop")
    d_weight = d_weight.at[part.tiles.assignment].set(d_row, mode="drop")
    return d_tokens, d_weight, [d_ups, d_down, [part.sums(d) for d, _ in zip(before, biases)]]

  def add(first, sums):
    d_tokens, d_weight, d_weights = gradients(first, jnp.float32, *sums[:2])
    return d_tokens, d_weight, jax.tree.map(jnp.add, sums[2], d_weights)

  start = jnp.zeros_like(tokens, jnp.float32), jnp.zeros_like(weight)
  if count == len(rows):
    d_tokens, d_weight, d_weights = gradients(0, down.dtype, *start)
  else:
    zeros = jax.tree.map(lambda array: jnp.zeros_like(array, jnp.float32), weights)
    d_tokens, d_weight, d_weights = _over_parts(add, sizes, count, (*start, zeros))
  d_weights = jax.tree.map(lambda d, array: d.astype(array.dtype), d_weights, weights)
  return d_tokens.astype(tokens.dtype), d_weight, *d_weights


def _over_parts(add: Callable, sizes: jax.Array, count: int, start):
  """Applies `add(first, sums)` to all assignments, `count` at a time."""
  return jax.lax.fori_loop(0, -(-sizes.sum() // count), lambda index, sums: add(index * count, sums), start)


class _Part:
  """`count` assignments from the `first` on: their tiles, and the kernels and the activation for these.

  Attributes:
    tiles: of the part.
    row, weight: `[T * R]`, of each of their rows.
    activation: with the biases and the dropout of each row.
  """

  def __init__(self, kernels: Kernels, activation, rows, weight, sizes, biases, dropout, first, count: int):
    wide = count >= 8 * kernels.rows * len(sizes)
    self.tiles = cut(sizes, count, kernels.rows if wide else kernels.rows // 2, first)
    self.row, self.weight = assigned(rows, weight, self.tiles.assignment)
    expert, self._kernels = self.tiles.expert, kernels
    by_row = [jnp.repeat(bias[expert], len(self.row) // len(expert), axis=0) for bias in biases]
    biased = grouped_network.with_biases(activation, by_row)
    self.activation = with_dropout(biased, picked(dropout, self.tiles.assignment))

  def product(self, x: jax.Array, w: jax.Array, transposed: bool, dtype: jnp.dtype) -> jax.Array:
    return self._kernels.product(self.tiles, x, w, transposed, dtype)

  def outer(self, dtype: jnp.dtype, a: jax.Array, b: jax.Array) -> jax.Array:
    return self._kernels.outer(self.tiles, a, b, dtype)

  def sums(self, rows: jax.Array) -> jax.Array:
    """float32 `[E, f]`: the sums of each expert's rows `[T * R, f]`, of which padding is 0."""
    number = jnp.arange(len(self.tiles.expert))
    by_tile = rows.reshape(len(number), -1, rows.shape[-1]).sum(1, dtype=jnp.float32)
    by_tile = jnp.where((number < self.tiles.used)[:, None], by_tile, 0)
    return jnp.zeros((len(self.tiles.first), rows.shape[-1])).at[self.tiles.expert].add(by_tile)

  def mark(self) -> contextlib.AbstractContextManager:
    """The kernels' stated cost is that of all T tiles; every expert pads at most one tile of a part."""
    return mark(len(self.row), len(self.tiles.first) * (len(self.row) // len(self.tiles.expert)))


def cost(rows: int, matrices: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
  """The compiler's cost estimate for multiplying each of `rows` rows by one of the matrices `[E, d, f]`."""
  _, d, f = matrices.shape
  size = (matrices.size + rows * (d + f)) * matrices.dtype.itemsize
  return pl.CostEstimate(flops=2 * rows * d * f, bytes_accessed=size, transcendentals=0)
