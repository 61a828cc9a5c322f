"""Each kernel on its own: those of dropless experts, in loops over blocks or custom ones, and those of attention."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe.checks.agreement import Case
from moe.experts.kernels import blocks, pallas_gpu, pallas_hopper, pallas_tpu, tiles
from moe.experts.kernels.rows import fetch
from moe.nn import attention, attention_kernels
from moe.nn.activations import ACTIVATIONS
from moe.nn.relative_position import TILE

# Assignments of each expert: none, and one more and less than blocks and tiles have; and so many that tiles are wide.
_UNEVEN, _MANY = (63, 0, 65, 257), (2049, 1, 3000, 4000)
# Few have fewer places than the many need, as where a router may choose every expert: those are computed in parts.
_FEW_TOKENS, _TOKENS = 200, 4000
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def kernel_cases(platform: str, *, quick: bool) -> dict[str, Case]:
  """The cases by name.

  Args:
    platform: "cpu", "cuda", "rocm" or "tpu", of the device.
    quick: one shape instead of four.
  """
  shapes = [(_UNEVEN, 32, 48, "geglu", _FEW_TOKENS)]
  if not quick:
    # 48 and 80 are what Triton can tile and no more.
    shapes = [
      (_UNEVEN, 256, 512, "geglu", _FEW_TOKENS),
      (_MANY, 256, 512, "gelu", _TOKENS),
      (_MANY, 256, 512, "gelu", _FEW_TOKENS),
      (_UNEVEN, 48, 80, "gelu", _FEW_TOKENS),
    ]
  cases: dict[str, Case] = {}
  for sizes, d, f, form, tokens in shapes:
    for dtype in ("float32", "bfloat16"):
      shape = f"{d} x {f}, {dtype}"
      at = f"{sum(sizes)} rows of {tokens} tokens, {shape}"
      networks: dict[str, tuple[Callable, Callable]] = {"blocks": (blocks.forward, blocks.backward)}
      for name, kernels in _kernels(platform, jnp.dtype(dtype), (len(sizes), d, f)).items():
        networks[name] = functools.partial(tiles.forward, kernels), functools.partial(tiles.backward, kernels)
        products = _products(kernels, sizes, d, f, dtype)  # the same for any number of tokens
        cases |= {f"{name} {what} {sum(sizes)} rows, {shape}": case for what, case in products.items()}
      for name, (forward, backward) in networks.items():
        draw = functools.partial(_problem, sizes, d, f, form, tokens)
        for way, function, reference in (
          ("forward", forward, blocks.forward),
          ("backward", backward, blocks.backward),
        ):
          cases[f"{name} {form} {at}, {way}"] = Case(
            _network(function, ACTIVATIONS[form], backward=way == "backward"),
            _network(reference, ACTIVATIONS[form], backward=way == "backward"),
            draw,
            _TOLERANCE[dtype],
            operands=functools.partial(_as_dtype, dtype),
            precision="highest",
          )
  return cases | _attention(platform)


def _attention(platform: str) -> dict[str, Case]:
  """Attention, by the platform's kernels if it has some, against its logits written out."""
  own = attention_kernels if platform == "tpu" else attention
  forward = getattr(own, "forward", attention.weighted_values)

  def draw(seed: int) -> tuple:
    random = np.random.default_rng(seed)
    q, k, v, d_out = (_rounded(random.normal(size=(2, 3, n, 64)) / 4) for n in (256, 512, 512, 256))
    bias = random.normal(size=(1, 3, (256 + 512) // TILE - 1, TILE, TILE)).astype(np.float32)
    return q, k, bias, v, (random.uniform(size=(2, 1, 256, 512)) < 0.5).astype(np.int8), d_out

  def run(function: Callable, *, backward: bool) -> Callable:
    return lambda q, k, bias, v, mask, d_out: function(q, k, v, bias, mask, *([d_out] if backward else []))

  return {
    f"attention of 256 queries and 512 keys, {dtype}, {way}": Case(
      run(function, backward=way == "backward"),
      run(reference, backward=way == "backward"),
      draw,
      _TOLERANCE[dtype],
      operands=functools.partial(_as_dtype, dtype),
      precision="highest",
    )
    for dtype in ("float32", "bfloat16")
    for way, function, reference in (
      ("forward", forward, attention.weighted_values),
      ("backward", own.gradients, attention.gradients),
    )
  }


def _kernels(platform: str, dtype: jnp.dtype, matrices: tuple[int, int, int]) -> dict[str, tiles.Kernels]:
  """The platform's kernels that take experts of this shape."""
  if platform == "tpu":
    return {"pallas tpu": pallas_tpu.KERNELS}
  if platform != "cuda":
    return {}
  hopper = pallas_hopper.takes(dtype, matrices, pallas_gpu.compute_capability())
  return {"pallas triton": pallas_gpu.KERNELS} | ({"pallas hopper": pallas_hopper.KERNELS} if hopper else {})


def _network(function: Callable, activation: Callable, *, backward: bool) -> Callable:
  def run(*arguments):
    return function(activation, *(arguments if backward else arguments[:-1]))

  return run


def _problem(sizes: tuple[int, ...], d: int, f: int, form: str, count: int, seed: int) -> tuple:
  """Tokens, rows, weight, sizes, ups, down, biases and the output's gradient; a tail of rows has no expert."""
  random, experts = np.random.default_rng(seed), len(sizes)
  rows = np.append(random.integers(0, count, sum(sizes)), [2] + [count] * 8).astype(np.int32)
  weight = random.uniform(size=len(rows)).astype(np.float32)
  up, gate, down = (_rounded(random.normal(size=(experts, d, f)) / np.sqrt(size)) for size in (d, d, f))
  tokens, cotangent = (_rounded(random.normal(size=(count, d))) for _ in range(2))
  ups = [gate, up] if form == "geglu" else [up]
  biases = [_rounded(random.normal(size=(experts, f))) for _ in ups]
  return tokens, rows, weight, np.asarray(sizes, np.int32), ups, down, biases, cotangent


def _products(kernels: tiles.Kernels, sizes: tuple[int, ...], d: int, f: int, dtype: str) -> dict[str, Case]:
  """The three products of a platform's kernels, whose rows are here in the order of the experts."""
  count, expert = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)

  def by_tile(run):
    """`run(tiles, to_tiles, to_rows)` with functions from rows to the rows of tiles and back."""
    cut = tiles.cut(jnp.asarray(sizes, jnp.int32), count, kernels.rows)

    def to_rows(result):
      return jnp.zeros((count, result.shape[1]), result.dtype).at[cut.assignment].set(result, mode="drop")

    return run(cut, lambda rows: fetch(rows, cut.assignment), to_rows)

  def product(transposed, x, w):
    def run(cut, to_tiles, to_rows):
      return to_rows(kernels.product(cut, to_tiles(x), w, transposed, jnp.float32))

    return by_tile(run)

  def outer(a, b):
    return by_tile(lambda cut, to_tiles, _: kernels.outer(cut, to_tiles(a), to_tiles(b), jnp.float32))

  def one_by_one(transposed, x, w):
    runs = [x[expert == e] @ (w[e].T if transposed else w[e]) for e in range(len(sizes))]
    return jnp.concatenate(runs)

  def outer_one_by_one(a, b):
    return jnp.stack([a[expert == e].T @ b[expert == e] for e in range(len(sizes))])

  def draw(shapes, seed):
    random = np.random.default_rng(seed)
    return tuple(_rounded(random.normal(size=shape)) for shape in shapes)

  matrices, wide, narrow = (len(sizes), d, f), (count, d), (count, f)
  operands = functools.partial(_as_dtype, dtype)
  found: dict[str, tuple[Callable, Callable, tuple]] = {
    "product": (functools.partial(product, False), functools.partial(one_by_one, False), (wide, matrices)),
    "product, transposed": (functools.partial(product, True), functools.partial(one_by_one, True), (narrow, matrices)),
    "outer product": (outer, outer_one_by_one, (wide, narrow)),
  }
  tolerance = _TOLERANCE["float32"]  # also from bfloat16: its products are exact in float32
  return {
    name: Case(function, reference, functools.partial(draw, shapes), tolerance, operands, "highest")
    for name, (function, reference, shapes) in found.items()
  }


def _rounded(array: np.ndarray) -> np.ndarray:
  """float32 numbers that bfloat16 has too, so that both dtypes begin from the same ones."""
  return array.astype(jnp.bfloat16).astype(np.float32)


def _as_dtype(dtype: str, arguments: tuple) -> tuple:
  """All in the dtype but the third argument, the weights of a network and the bias of attention, which stay float32."""

  def cast(index, tree):
    return tree if index == 2 else jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float32 else a, tree)

  return tuple(cast(index, tree) for index, tree in enumerate(arguments))
