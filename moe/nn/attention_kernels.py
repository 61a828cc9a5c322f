"""Attention by kernels on TPUs, in Pallas: the logits stay on the chip, forward and backward.

Each step of a kernel's grid holds some queries of one head and all of its keys, so a softmax is made at once, as it is
written, and the backward pass recomputes it from the same operands: nothing is kept but queries, keys and values. Of
`[Q, K]` arrays, memory sees the mask alone: of a bias by distance, one tile of each diagonal stays on the chip.

Axis names are those of `moe.nn.attention`.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.nn.relative_position import TILE, diagonal_of
from moe.parallel.mesh import like

MASKED = -1e30  # so low that exp() of it is exactly 0 next to any real logit
# Logits of one step: 1 MiB in float32, of which a step holds up to five arrays, beside the tiles of bias and gradient.
_LOGITS = 2**18
_KEYS = 2**18  # numbers in the keys of one head, as many as in its values and in the sums of their gradients


def takes(queries: int, keys: int, width: int) -> bool:
  """Whether there are kernels for so many queries and keys of this width: whether what a step holds fits the chip."""
  fits = keys * TILE <= _LOGITS and keys * width <= _KEYS
  return fits and queries % TILE == 0 and keys % TILE == 0


def forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array) -> jax.Array:
  """Values weighted by the softmax of `q k^T + bias` over the keys of which the mask is not 0.

  Args:
    q: `[B, h, Q, w]`.
    k: `[B, h, K, w]`.
    v: `[B, h, K, w]`.
    bias: float32 `[1, h, n, TILE, TILE]`, a tile of each diagonal of `[Q, K]`, the same for all rows; or None.
    mask: int8 `[B, 1, Q, K]`; a query with everything masked attends to everything.

  Returns:
    `[B, h, Q, w]` in the dtype of `v`; logits, softmax and sums are float32.
  """
  on = _Grid(q, k, ("head", "part", "row"))

  def kernel(q, k, v, bias, mask, out):
    out[...] = _product(on.softmax(q, k, bias, mask).astype(v.dtype), v[...]).astype(out.dtype)

  (out,) = on.call(kernel, "attention", (q, k, v, bias, mask), [(v.dtype, on.queries)], products=2)
  return out


def gradients(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """Those with respect to q, k, v and bias, each in its array's dtype; `gradient` is that of the result."""
  d_q, d_bias = _query_gradients(q, k, v, bias, mask, gradient)
  return d_q, *_key_gradients(q, k, v, bias, mask, gradient), d_bias


def _query_gradients(q, k, v, bias, mask, gradient):
  on = _Grid(q, k, ("head", "part", "row"))

  def kernel(q, k, v, bias, mask, gradient, d_q, d_bias=None):
    d_logits = _logit_gradients(on.softmax(q, k, bias, mask), v, mask, gradient)
    d_q[...] = _product(d_logits.astype(k.dtype), k[...]).astype(d_q.dtype)
    if d_bias is not None:

      @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
      def _():
        d_bias[...] = jnp.zeros_like(d_bias)

      for diagonal, rows, columns in on.tiles():
        d_bias[diagonal] += d_logits[rows, columns]

  results = [(q.dtype, on.queries)] + ([] if bias is None else [(bias.dtype, on.bias)])
  found = on.call(kernel, "attention_query_gradients", (q, k, v, bias, mask, gradient), results, products=3)
  return found if len(found) == 2 else (*found, None)


def _key_gradients(q, k, v, bias, mask, gradient):
  # Parts innermost: all queries of a head add to the gradients of its keys and values.
  on = _Grid(q, k, ("head", "row", "part"))

  def kernel(q, k, v, bias, mask, gradient, d_k, d_v, sum_k, sum_v):
    part = pl.program_id(2)

    @pl.when(part == 0)
    def _():
      sum_k[...] = jnp.zeros_like(sum_k)
      sum_v[...] = jnp.zeros_like(sum_v)

    weights = on.softmax(q, k, bias, mask)
    sum_v[...] += _product(weights.astype(v.dtype), gradient[...], over_rows=True)
    sum_k[...] += _product(_logit_gradients(weights, v, mask, gradient).astype(q.dtype), q[...], over_rows=True)

    @pl.when(part == pl.num_programs(2) - 1)
    def _():
      d_k[...] = sum_k[...].astype(d_k.dtype)
      d_v[...] = sum_v[...].astype(d_v.dtype)

  results = [(k.dtype, on.keys), (v.dtype, on.keys)]
  sums = [pltpu.VMEM(k.shape[2:], jnp.float32) for _ in range(2)]
  arrays = (q, k, v, bias, mask, gradient)
  return on.call(kernel, "attention_key_gradients", arrays, results, products=4, scratch=sums)


class _Grid:
  """The grid of a kernel, whose axes are the heads, the rows, and the parts of a row's queries.

  Heads whose width is a multiple of 128 lanes are read and written where products with weights leave them, side by
  side in `[B, T, h * w]`; then `[B, h, T, w]` exists on paper alone, since compilers cancel the transposes.

  Attributes:
    queries, keys, bias, mask: shape of the whole array as the kernel has it, and its blocks.
  """

  def __init__(self, q: jax.Array, k: jax.Array, order: Sequence[str]):
    batch, heads, length, width = q.shape
    keys = k.shape[2]
    size = max(n for n in range(TILE, length + 1, TILE) if length % n == 0 and n * keys <= _LOGITS)
    self._order, self._sizes = order, {"head": heads, "row": batch, "part": length // size}
    self._tiles = length // TILE, size // TILE, keys // TILE
    self._flops = 2 * batch * heads * length * keys * width
    self._heads = heads, width
    self.queries: tuple[tuple[int, ...], pl.BlockSpec]
    self.keys: tuple[tuple[int, ...], pl.BlockSpec]
    if width % TILE == 0:
      self.queries = (batch, length, heads * width), self._blocks((None, size, width), ("row", "part", "head"))
      self.keys = (batch, keys, heads * width), self._blocks((None, keys, width), ("row", "", "head"))
    else:
      self.queries = q.shape, self._blocks((None, None, size, width), ("row", "head", "part", ""))
      self.keys = k.shape, self._blocks((None, None, keys, width), ("row", "head", "", ""))
    tiles = (length // TILE + keys // TILE - 1, TILE, TILE)
    # Read once for each head: a second buffer would fetch the next head's early, for room that long rows do not have.
    of_bias = self._blocks((None, None, *tiles), ("", "head", "", "", ""), buffers=1)
    self.bias = (1, heads, *tiles), of_bias
    self.mask = (batch, 1, length, keys), self._blocks((None, None, size, keys), ("row", "", "part", ""))

  def _blocks(self, shape: tuple[int | None, ...], axes: Sequence[str], buffers: int = 2) -> pl.BlockSpec:
    """Blocks of which each axis is indexed by an axis of the grid, or by none."""

    def index(*at):
      return tuple(at[self._order.index(axis)] if axis else 0 for axis in axes)

    return pl.BlockSpec(shape, index, pipeline_mode=pl.Buffered(buffers))

  def tiles(self) -> Iterator[tuple[Any, slice, slice]]:
    """Inside a kernel, of each tile of its logits: the diagonal that it is on, and its rows and columns."""
    all_rows, rows, columns = self._tiles
    first = pl.program_id(self._order.index("part")) * rows
    for row, column in itertools.product(range(rows), range(columns)):
      yield diagonal_of(first + row, column, all_rows), _nth(row), _nth(column)

  def softmax(self, q: Any, k: Any, bias: Any, mask: Any) -> jax.Array:
    """Inside a kernel, the weights, float32 `[queries of the part, K]`."""
    logits = _product(q[...], k[...], transposed=True)
    if bias is not None:
      _, rows, columns = self._tiles
      tiles = (bias[diagonal] for diagonal, _, _ in self.tiles())
      logits += jnp.block([list(itertools.islice(tiles, columns)) for _ in range(rows)])
    logits = jnp.where(_seen(mask), logits, MASKED)
    powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)

  def call(
    self,
    kernel: Callable,
    name: str,
    arrays: tuple,
    results: list,
    *,
    products: int,
    scratch: Sequence[Any] = (),
  ) -> list[jax.Array]:
    """Runs a kernel.

    Args:
      kernel: takes blocks of the arrays, None where one is None, of the results, and the scratch.
      name: of it.
      arrays: `q, k, v, bias, mask`, and the gradient of the output, if it needs that.
      results: dtype, and shape and blocks, of each.
      products: how many it makes over all queries, keys and the width.
      scratch: on the chip.
    """
    kinds = (self.queries, self.keys, self.keys, self.bias, self.mask, self.queries)
    given = [(_laid_out(array, shape), blocks) for array, (shape, blocks) in zip(arrays, kinds) if array is not None]
    has_bias = arrays[3] is not None

    def run(*blocks):
      kernel(*blocks[:3], blocks[3] if has_bias else None, *blocks[3 + has_bias :])

    shapes = [like(arrays[0], shape, dtype) for dtype, (shape, _) in results]
    moved = sum(one.size * one.dtype.itemsize for one in [array for array, _ in given] + shapes)
    logits = self._sizes["row"] * arrays[0].shape[1] * arrays[0].shape[2] * arrays[1].shape[2]
    found = pl.pallas_call(
      run,
      out_shape=shapes,
      grid=tuple(self._sizes[axis] for axis in self._order),
      in_specs=[blocks for _, blocks in given],
      out_specs=[blocks for _, (_, blocks) in results],
      scratch_shapes=scratch,
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
      cost_estimate=pl.CostEstimate(flops=products * self._flops, bytes_accessed=moved, transcendentals=logits),
      name=name,
    )(*(array for array, _ in given))
    return [self._by_head(one) if one.ndim == 3 else one for one in found]

  def _by_head(self, x: jax.Array) -> jax.Array:
    """`[B, T, h * w]` to `[B, h, T, w]`."""
    return x.reshape(*x.shape[:2], *self._heads).swapaxes(1, 2)


def _laid_out(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The array as the kernel has it: from `[B, h, T, w]` to `[B, T, h * w]`, if that is its shape."""
  return x if x.shape == shape else x.swapaxes(1, 2).reshape(shape)


def _logit_gradients(weights, v, mask, gradient) -> jax.Array:
  """Float32, of the shape of the weights."""
  d_weights = _product(gradient[...], v[...], transposed=True)
  found = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
  return jnp.where(_seen(mask), found, 0)  # of a query with everything masked, too


def _nth(tile: int) -> slice:
  """The rows or columns of a tile."""
  return slice(tile * TILE, (tile + 1) * TILE)


def _seen(mask) -> jax.Array:
  """Bool, from whole numbers of 32 bits: TPU v4 does not compare those of 8."""
  return mask[...].astype(jnp.int32) != 0


def _product(a: jax.Array, b: jax.Array, *, transposed: bool = False, over_rows: bool = False) -> jax.Array:
  """Float32 `a b`, or `a b^T` if transposed, or `a^T b` if over rows."""
  axes = ((0 if over_rows else 1,), (1 if transposed else 0,))
  return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)
