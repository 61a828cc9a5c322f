"""Grouped matrix products on NVIDIA's Hopper GPUs, in Pallas via Mosaic. See `tiles.Kernels` for what they compute.

One warpgroup copies tiles of the operands into shared memory while two others multiply those that are there, each half
of the columns: Hopper's products read shared memory, and at half of its speed a product that waits for them runs.
As many programs as the GPU has multiprocessors go through all tiles, and neighbouring ones share operands in its cache.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from moe.experts.kernels.tiles import Kernels, Tiles, cost
from moe.parallel.mesh import like

_ROWS = 128
_STEP = 64  # of the contracted axis, in shared memory at once
_EDGE = 64  # of the squares in which results leave shared memory
_MOST_STAGES = 4  # steps whose blocks are in shared memory
_SHARED = 227 * 1024  # bytes that a program may have
_MULTIPROCESSORS = 132  # of an H100 or H200, where no GPU is at hand to ask


def takes(dtype: jnp.dtype, matrices: tuple[int, int, int], capability: tuple[int, int]) -> bool:
  """Whether the kernels apply: 16-bit numbers, d and f multiples of 128, a GPU of compute capability 9.0."""
  _, d, f = matrices
  return capability == (9, 0) and dtype in (jnp.bfloat16, jnp.float16) and d % 128 == f % 128 == 0


def _product(tiles: Tiles, x: jax.Array, w: jax.Array, transposed: bool, dtype: jnp.dtype) -> jax.Array:
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  count, rows, columns = len(tiles.expert), len(x) // len(tiles.expert), _columns(outer)

  def matrix(expert, j, w):
    across = pl.ds(j * columns, columns)
    return w.at[expert].at[across, :] if transposed else w.at[expert].at[:, across]

  def kernel(expert, used, x, w, out):
    of_w = _block((columns, _STEP), 1, w.dtype) if transposed else _block((_STEP, columns), 0, w.dtype)
    specs = [_block((rows, _STEP), 1, x.dtype), of_w]
    pipeline = functools.partial(_pipeline, (inner // _STEP,), specs, dtype, rows, columns)

    def multiply(part, x, w, total):
      plgpu.wgmma(total, x, w.at[part].transpose((1, 0)) if transposed else w.at[:, part])

    @_with_buffers(pipeline, x, w.at[0], dtype)
    def _(buffers, results):
      @plgpu.nd_loop((count * (outer // columns),), collective_axes="program")
      def _(loop):
        tile, j = plgpu.planar_snake(loop.index[0], (count, outer // columns), 0, 8)

        @pl.when(tile < used[0])
        def _():
          run = pl.ds(tile * rows, rows)
          block = out.at[run, pl.ds(j * columns, columns)]
          pipeline(multiply, results, block)(x.at[run, :], matrix(expert[tile], j, w), allocations=buffers)

  call = _call(kernel, like(x, (len(x), outer), dtype), "grouped_product", cost(len(x), w))
  return call(tiles.expert, tiles.used[None], x, w)


def _outer(tiles: Tiles, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
  experts, d, f = len(tiles.first), a.shape[1], b.shape[1]
  rows, columns = len(a) // len(tiles.expert), _columns(f)
  steps = (jnp.append(tiles.first[1:], tiles.used) - tiles.first) * (rows // _STEP)

  def multiply(part, a, b, total):
    plgpu.wgmma(total, a.transpose((1, 0)), b.at[:, part])

  def kernel(first, steps, a, b, out):
    specs = [_block((_STEP, _ROWS), 0, a.dtype), _block((_STEP, columns), 0, b.dtype)]

    def pipeline(steps, *about):
      return _pipeline((steps,), specs, dtype, _ROWS, columns, *about)

    @_with_buffers(functools.partial(pipeline, _MOST_STAGES), a, b, dtype)  # a pipeline of fewer steps has fewer
    def _(buffers, results):
      @plgpu.nd_loop((experts, d // _ROWS * (f // columns)), collective_axes="program")
      def _(loop):
        expert = loop.index[0]
        i, j = plgpu.planar_snake(loop.index[1], (d // _ROWS, f // columns), 0, 8)
        # It ends beyond the array, where no step goes.
        run = pl.ds(pl.multiple_of(first[expert] * rows, _STEP), len(a))
        down, across = pl.ds(i * _ROWS, _ROWS), pl.ds(j * columns, columns)
        block = out.at[expert].at[down, across]
        pipeline(steps[expert], multiply, results, block)(a.at[run, down], b.at[run, across], allocations=buffers)

  result = like(a, (experts, d, f), dtype)
  return _call(kernel, result, "grouped_outer", cost(len(a), result))(tiles.first, steps, a, b)


def _pipeline(
  grid: tuple,
  specs: list[plgpu.BlockSpec],
  dtype: jnp.dtype,
  rows: int,
  columns: int,
  multiply: Callable | None = None,
  results: jax.Array | None = None,
  out: jax.Array | None = None,
):
  """Multiplies blocks of two operands, step by step, and writes their sum, `[rows, columns]`, to `out`.

  `multiply(part, a, b, total)` adds a product to a warpgroup's own part of the columns. Without it, the pipeline is
  only good for asking what buffers it needs.
  """
  half = columns // 2
  group = jax.lax.axis_index("warpgroup") if multiply else 0
  part = pl.ds(group * half, half)

  def step(_, a, b, total):
    multiply(part, a, b, total)
    plgpu.wgmma_wait(0)
    return total

  def context(run):
    def summed(total):
      run(total)
      _write(total[...].astype(dtype), results.at[group], out.at[:, part])

    pl.run_scoped(summed, plgpu.ACC((rows, half), jnp.float32))

  return plgpu.emit_pipeline_warp_specialized(
    step,
    grid=grid,
    in_specs=specs,
    wg_axis="warpgroup",
    num_compute_wgs=2,
    memory_registers=40,
    max_concurrent_steps=_stages(rows, columns, dtype),
    compute_context=context,
  )


def _write(values: jax.Array, squares, out) -> None:
  """Writes a warpgroup's values to `out` by way of its two squares in shared memory, which take turns."""
  rows, columns = values.shape
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  turn = 0
  for i in range(0, rows, _EDGE):
    for j in range(0, columns, _EDGE):
      plgpu.wait_smem_to_gmem(1, wait_read_only=True)
      squares[turn] = values[i : i + _EDGE, j : j + _EDGE]
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(squares.at[turn], out.at[pl.ds(i, _EDGE), pl.ds(j, _EDGE)])
      turn = 1 - turn


def _with_buffers(pipeline: Callable, a, b, dtype: jnp.dtype) -> Callable:
  """Runs a function of a pipeline's buffers and of the squares for its results, shared by all its uses."""
  squares = plgpu.SMEM((2, 2, _EDGE, _EDGE), dtype, transforms=_layout(_EDGE, dtype))
  buffers = pipeline().get_allocations(a, b)
  return lambda function: pl.run_scoped(function, buffers, squares, collective_axes="warpgroup")


def _call(kernel: Callable, out: jax.ShapeDtypeStruct, name: str, estimate: pl.CostEstimate) -> Callable:
  def whole(*refs):
    kernel(*refs)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

  return pl.kernel(
    whole,
    out,
    mesh=plgpu.Mesh(
      grid=(_multiprocessors(),), grid_names=("program",), num_threads=3, thread_name="warpgroup", kernel_name=name
    ),
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    cost_estimate=estimate,
    name=name,
  )


def _block(shape: tuple[int, int], axis: int, dtype: jnp.dtype) -> plgpu.BlockSpec:
  """A block of an operand that moves along one axis, laid out in shared memory as products read it."""
  return plgpu.BlockSpec(
    shape,
    lambda i: tuple(i if axis == n else 0 for n in range(2)),
    transforms=_layout(shape[1], dtype),
    memory_space=plgpu.SMEM,
  )


def _layout(width: int, dtype: jnp.dtype) -> tuple:
  bits = jnp.dtype(dtype).itemsize * 8
  swizzle = plgpu.find_swizzle(width * bits)
  return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)


def _columns(size: int) -> int:
  """How many columns a program has at once."""
  return 256 if size % 256 == 0 else 128


def _stages(rows: int, columns: int, dtype: jnp.dtype) -> int:
  """How many steps' blocks fit into shared memory beside the squares of the results."""
  squares = 4 * _EDGE**2 * jnp.dtype(dtype).itemsize
  return min(_MOST_STAGES, (_SHARED - squares - 2048) // (2 * _STEP * (rows + columns)))


def _multiprocessors() -> int:
  if jax.default_backend() != "gpu":
    return _MULTIPROCESSORS
  return getattr(jax.devices()[0], "core_count", _MULTIPROCESSORS)


KERNELS = Kernels(_product, _outer, rows=_ROWS)
