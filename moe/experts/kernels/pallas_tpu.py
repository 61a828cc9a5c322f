"""Grouped matrix products on TPUs, in Pallas. See `tiles.Kernels` for what they compute.

In JAX 0.10.2 `jax.lax.ragged_dot` has a kernel for the forward product only: its gradient with respect to the matrices
is a masked dense product over all experts, and a transposed product first copies all matrices.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.experts.kernels.tiles import Kernels, Tiles, cost
from moe.parallel.mesh import like

# Bytes of a tile of rows and of a tile of a matrix: two of each, a result and its float32 sum fit into 16 MiB.
_ROWS, _MATRIX = 2**21, 2**22


def _product(tiles: Tiles, x: jax.Array, w: jax.Array, transposed: bool, dtype: jnp.dtype) -> jax.Array:
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  rows = len(x) // len(tiles.expert)
  k = _divisor(inner, _ROWS // (rows * x.dtype.itemsize))
  n = _divisor(outer, _MATRIX // (k * w.dtype.itemsize))

  def matrix(j, t, i, expert):
    return (expert[t], j, i) if transposed else (expert[t], i, j)

  return pl.pallas_call(
    functools.partial(_product_kernel, transposed),
    out_shape=like(x, (len(x), outer), dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      # Tiles of one expert are consecutive, so if k is the full inner axis its matrix is read once.
      grid=(outer // n, tiles.used, inner // k),
      in_specs=[
        pl.BlockSpec((rows, k), lambda j, t, i, expert: (t, i)),
        pl.BlockSpec((None, n, k) if transposed else (None, k, n), matrix),
      ],
      out_specs=pl.BlockSpec((rows, n), lambda j, t, i, expert: (t, j)),
      scratch_shapes=[pltpu.VMEM((rows, n), jnp.float32)],
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
    cost_estimate=cost(len(x), w),
    name="grouped_product",
  )(tiles.expert, x, w)


def _product_kernel(transposed, expert, x, w, out, total):
  step = pl.program_id(2)

  @pl.when(step == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  axes = (((1,), (1 if transposed else 0,)), ((), ()))
  total[...] += jax.lax.dot_general(x[...], w[...], axes, preferred_element_type=jnp.float32)

  @pl.when(step == pl.num_programs(2) - 1)
  def _():
    out[...] = total[...].astype(out.dtype)


def _outer(tiles: Tiles, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
  rows, (d, f) = len(a) // len(tiles.expert), (a.shape[1], b.shape[1])
  m, n = _divisor(d, 1024), _divisor(f, 2048 // a.dtype.itemsize)
  return pl.pallas_call(
    _outer_kernel,
    out_shape=like(a, (len(tiles.first), d, f), dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(d // m, f // n, tiles.used),
      in_specs=[
        pl.BlockSpec((rows, m), lambda i, j, t, expert: (t, i)),
        pl.BlockSpec((rows, n), lambda i, j, t, expert: (t, j)),
      ],
      out_specs=pl.BlockSpec((None, m, n), lambda i, j, t, expert: (expert[t], i, j)),
      scratch_shapes=[pltpu.VMEM((m, n), jnp.float32)],
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=cost(len(a), jax.ShapeDtypeStruct((len(tiles.first), d, f), dtype)),
    name="grouped_outer",
  )(tiles.expert, a, b)


def _outer_kernel(expert, a, b, out, total):
  tile, last = pl.program_id(2), pl.num_programs(2) - 1

  @pl.when((tile == 0) | (expert[tile] != expert[jnp.maximum(tile - 1, 0)]))
  def _():
    total[...] = jnp.zeros_like(total)

  total[...] += jax.lax.dot_general(a[...], b[...], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

  @pl.when((tile == last) | (expert[tile] != expert[jnp.minimum(tile + 1, last)]))
  def _():
    out[...] = total[...].astype(out.dtype)


def _divisor(size: int, most: int) -> int:
  """The largest multiple of a vector's 128 lanes that divides `size` and is at most `most`; else `size` itself."""
  return next((n for n in range(most // 128 * 128, 0, -128) if size % n == 0), size)


KERNELS = Kernels(_product, _outer, rows=256)
