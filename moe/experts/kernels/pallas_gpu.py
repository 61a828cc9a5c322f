"""Grouped matrix products on NVIDIA GPUs, in Pallas via Triton. See `tiles.Kernels` for what they compute.

On GPUs XLA's own `jax.lax.ragged_dot` is a masked dense product over all experts (JAX 0.10.2).
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moe.experts.kernels.tiles import Kernels, Tiles, cost
from moe.parallel.mesh import like

_ROWS = 128


def takes(assignments: int, matrices: tuple[int, int, int]) -> bool:
  """Whether the kernels apply: d and f are multiples of 16, and every array fits 32-bit offsets."""
  experts, d, f = matrices
  largest = max(experts * d * f, (assignments + experts * _ROWS) * max(d, f))
  return d % 16 == f % 16 == 0 and largest < 2**31


def _product(tiles: Tiles, x: jax.Array, w: jax.Array, transposed: bool, dtype: jnp.dtype) -> jax.Array:
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  rows, k, n = len(x) // len(tiles.expert), _step(inner, x.dtype), math.gcd(outer, 128)
  count = tiles.used[None]
  return pl.pallas_call(
    functools.partial(_product_kernel, transposed, k),
    out_shape=like(x, (len(x), outer), dtype),
    # Programs that run at the same time are consecutive in t, so that many read the same columns of a matrix.
    grid=(outer // n, len(tiles.expert)),
    in_specs=[_whole(tiles.expert), _whole(count), pl.BlockSpec((rows, inner), lambda j, t: (t, 0)), _whole(w)],
    out_specs=pl.BlockSpec((rows, n), lambda j, t: (t, j)),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    cost_estimate=cost(len(x), w),
    name="grouped_product",
  )(tiles.expert, count, x, w)


def _product_kernel(transposed, k, expert, count, x, w, out):
  tile, n = pl.program_id(1), out.shape[1]
  columns = pl.ds(pl.program_id(0) * n, n)

  @pl.when(tile < count[0])
  def _():
    matrix = expert[tile]

    def add(i, total):
      span = pl.ds(i * k, k)
      part = w[matrix, columns, span].T if transposed else w[matrix, span, columns]
      return total + jnp.dot(x[:, span], part, preferred_element_type=jnp.float32)

    total = jax.lax.fori_loop(0, x.shape[1] // k, add, jnp.zeros(out.shape, jnp.float32))
    out[...] = total.astype(out.dtype)


def _outer(tiles: Tiles, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
  shape = (len(tiles.first), a.shape[1], b.shape[1])
  m, n, step = math.gcd(shape[1], 128), math.gcd(shape[2], 128), _step(_ROWS, a.dtype)
  # In steps of rows rather than in tiles.
  starts, ends = (
    t * (len(a) // len(tiles.expert) // step) for t in (tiles.first, jnp.append(tiles.first[1:], tiles.used))
  )
  return pl.pallas_call(
    functools.partial(_outer_kernel, step),
    out_shape=like(a, shape, dtype),
    grid=(shape[1] // m, shape[2] // n, shape[0]),
    in_specs=[
      _whole(starts),
      _whole(ends),
      pl.BlockSpec((len(a), m), lambda i, j, e: (0, i)),
      pl.BlockSpec((len(b), n), lambda i, j, e: (0, j)),
    ],
    out_specs=pl.BlockSpec((None, m, n), lambda i, j, e: (e, i, j)),
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    cost_estimate=cost(len(a), jax.ShapeDtypeStruct(shape, dtype)),
    name="grouped_outer",
  )(starts, ends, a, b)


def _outer_kernel(step, starts, ends, a, b, out):
  expert = pl.program_id(2)

  def add(i, total):
    span = pl.ds(i * step, step)
    return total + jnp.dot(a[span, :].T, b[span, :], preferred_element_type=jnp.float32)

  total = jax.lax.fori_loop(starts[expert], ends[expert], add, jnp.zeros(out.shape, jnp.float32))
  out[...] = total.astype(out.dtype)


def _step(size: int, dtype: jnp.dtype) -> int:
  """How much of a contracted axis a program holds at once, so that three stages fit: 96 KiB, before Ampere 48."""
  return math.gcd(size, (128 if compute_capability() >= (8, 0) else 64) // dtype.itemsize)


def compute_capability() -> tuple[int, int]:
  """Of this machine's NVIDIA GPU; (0, 0) if it has none."""
  found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.devices()[0], "compute_capability", "")))  # AMD has names
  return (int(found[1]), int(found[2])) if found else (0, 0)


def _whole(array: jax.Array) -> pl.BlockSpec:
  return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)


KERNELS = Kernels(_product, _outer, rows=_ROWS)
