"""Ragged experts by kernels: every expert's run padded to whole tiles of rows, all of them multiplied by one kernel.

A tile has one expert, so kernels need no masks, and padding is rows of zeros, of which only the last tile of a run has
any. Tiles beyond the last run are room for worse routings: kernels do not compute them, so what they hold is undefined;
nothing reads it but elementwise functions, whose results find no place to go.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.experts.kernels import grouped as grouped_network
from moe.experts.kernels.rows import NOWHERE, assigned, fetch


class Kernels(NamedTuple):
  """What a platform offers; `tiles` says which expert every tile of rows has.

  Attributes:
    product: `(tiles, x [T * R, d], w [E, d, f], transposed, dtype)` to `[T * R, f]` of `dtype`: each tile's rows times
      its expert's matrix. Transposed, `[T * R, f]` to `[T * R, d]`.
    outer: `(tiles, a [T * R, d], b [T * R, f], dtype)` to `[E, d, f]`: the sum over each expert's rows of `a^T b`.
    rows: R where experts have `8 * R` rows or more in the mean, so that a sixteenth is padding; else half as many.
  """

  product: Callable
  outer: Callable
  rows: int


class Tiles(NamedTuple):
  """The tiles of a routing; T is a bound of how many there are.

  Attributes:
    expert: int32 `[T]`, ascending.
    first: int32 `[E]`, each expert's first tile. Every expert has at least one, if only of padding.
    used: int32 scalar, how many there are.
    place: int32 `[T * R]`, where each row stands among the assignments; out of range for padding.
  """

  expert: jax.Array
  first: jax.Array
  used: jax.Array
  place: jax.Array


def cut(sizes: jax.Array, assignments: int, rows: int) -> Tiles:
  """Runs of `sizes [E]` among the assignments, cut into tiles of `rows`."""
  bound = assignments // rows + len(sizes)
  tiles = jnp.maximum(-(-sizes // rows), 1)
  ends = jnp.cumsum(tiles)
  expert = jnp.repeat(jnp.arange(len(sizes), dtype=jnp.int32), tiles, total_repeat_length=bound)
  within = (jnp.arange(bound) - (ends - tiles)[expert])[:, None] * rows + jnp.arange(rows)
  place = (jnp.cumsum(sizes) - sizes)[expert][:, None] + within
  place = jnp.where(within < sizes[expert][:, None], place, NOWHERE)
  return Tiles(expert, ends - tiles, ends[-1], place.reshape(-1))


def forward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down):
  """As `ragged_feed_forward`."""
  tiles, row, weights = _tiles(kernels, rows, weight, sizes)

  def product(x, w, transposed, dtype):
    return kernels.product(tiles, x, w, transposed, dtype)

  y = grouped_network.output(product, activation, fetch(tokens, row), weights, ups, down)
  return jnp.zeros_like(tokens, jnp.float32).at[row].add(y, mode="drop").astype(tokens.dtype)


def backward(kernels: Kernels, activation, tokens, rows, weight, sizes, ups, down, gradient):
  """The gradients by tokens, weight, ups and down, each of its array's dtype."""
  tiles, row, weights = _tiles(kernels, rows, weight, sizes)

  def product(x, w, transposed, dtype):
    return kernels.product(tiles, x, w, transposed, dtype)

  def outer(a, b):
    return kernels.outer(tiles, a, b, down.dtype)

  d_x, d_weight, d_ups, d_down = grouped_network.gradients(
    product, outer, activation, fetch(tokens, row), fetch(gradient, row), weights, ups, down
  )
  d_tokens = jnp.zeros_like(tokens, jnp.float32).at[row].add(d_x, mode="drop").astype(tokens.dtype)
  return d_tokens, jnp.zeros_like(weight).at[tiles.place].set(d_weight, mode="drop"), d_ups, d_down


def like(x: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
  """A kernel's result, which varies over the mesh axes of a `jax.shard_map` as x does."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def cost(rows: int, matrices: jax.Array | jax.ShapeDtypeStruct) -> pl.CostEstimate:
  """What the compiler is told of a product of so many rows with one of the matrices each, `[E, d, f]`."""
  _, d, f = matrices.shape
  size = (matrices.size + rows * (d + f)) * matrices.dtype.itemsize
  return pl.CostEstimate(flops=2 * rows * d * f, bytes_accessed=size, transcendentals=0)


def _tiles(kernels, rows, weight, sizes) -> tuple[Tiles, jax.Array, jax.Array]:
  """The tiles, the token of every row of theirs and its weight."""
  wide = len(rows) >= 8 * kernels.rows * len(sizes)
  tiles = cut(sizes, len(rows), kernels.rows if wide else kernels.rows // 2)
  return tiles, *assigned(rows, weight, tiles.place)
