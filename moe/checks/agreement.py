"""The same function on the device and, in float32, on the CPU."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.checks.journal import Finding

# Programs that run once or twice: what the compiler would save it would not give back. Without autotuning, too, since
# it tries kernels by the dozen; speed is measured elsewhere.
_COMPILED_QUICKLY: dict[str, dict[str, bool | str]] = {
  "cpu": {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": "1",
  },
  "gpu": {"xla_gpu_autotune_level": "0"},
  "tpu": {},
}
# An array of smaller numbers is compared with this size: rounding of what cancels has no size of its own.
_SMALLEST = 1e-2
# How much inputs are moved to see whether a discrete choice among them is close, and how far outputs may move then.
_NUDGE, _MOVED, _MOST_DRAWS = 1e-5, 3e-3, 20

# Programs over several devices that were started in another order on each would wait for each other.
_ONE_BY_ONE = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Case:
  """A function to run on both.

  Attributes:
    function: for the device, of arrays; traced.
    reference: for the CPU, of the same arrays.
    draw: from a seed to the arguments, as trees of NumPy arrays.
    tolerance: of float32 results; those of bfloat16, and whole numbers, have their own.
    operands: what the arguments of `function` are made of the drawn ones: other dtypes, or places on a mesh.
    precision: of matrix products on the device; None for its default.
    discrete: whether rounding could change choices: arguments are then drawn until a nudge to the first one does not.
  """

  function: Callable
  reference: Callable
  draw: Callable[[int], tuple]
  tolerance: float
  operands: Callable[[tuple], tuple] = lambda arguments: arguments
  precision: str | None = None
  discrete: bool = False


def agreement(case: Case) -> Finding:
  """The largest difference between device and CPU."""
  with on_cpu():
    arguments, expected = _settled(case) if case.discrete else _first(case)
  arguments = case.operands(arguments)
  with jax.default_matmul_precision(case.precision) if case.precision else contextlib.nullcontext():
    platform = jax.default_backend()
    program = _compiled(case.function, arguments, platform)
    with _ONE_BY_ONE:
      found = jax.device_get(program(*arguments))
  return difference(found, expected, case.tolerance)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
  """What is computed inside is computed on the CPU, with float32's own precision."""
  with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
    yield


def difference(found: Any, expected: Any, tolerance: float) -> Finding:
  """The error of the array that is worst by its tolerance.

  Args:
    found: a tree of arrays, whose dtypes say how exact they can be.
    expected: the same tree.
    tolerance: of float32 arrays. That of bfloat16 is 2% if this is less; whole numbers must be equal, and their error
      is the share of those that are not.
  """
  worst = Finding(0.0, tolerance)
  leaves = jax.tree_util.tree_leaves_with_path(found)
  for (path, one), other in zip(leaves, jax.tree.leaves(expected), strict=True):
    error, allowed = _error(np.asarray(one), np.asarray(other), tolerance)
    exceeds = error > worst.error * allowed / worst.tolerance if allowed and worst.tolerance else error > allowed
    if exceeds:
      worst = Finding(error, allowed, jax.tree_util.keystr(path, simple=True, separator="."))
      if not worst.ok and not allowed:
        return worst
  return worst


def _error(found: np.ndarray, expected: np.ndarray, tolerance: float) -> tuple[float, float]:
  if found.shape != expected.shape:
    return float("inf"), tolerance
  if not jnp.issubdtype(found.dtype, jnp.floating):
    return float((found != expected).mean()) if found.size else 0.0, 0.0
  allowed = max(tolerance, 2e-2) if found.dtype == jnp.bfloat16 else tolerance
  a, b = found.astype(np.float64), expected.astype(np.float64)
  finite = np.isfinite(b)
  if not np.isfinite(a[finite]).all() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
    return float("inf"), allowed
  largest = np.abs(b[finite]).max(initial=_SMALLEST)
  return float(np.abs(a[finite] - b[finite]).max(initial=0.0) / largest), allowed


def _first(case: Case) -> tuple[tuple, Any]:
  arguments = case.draw(0)
  return arguments, jax.device_get(_compiled(case.reference, arguments, "cpu")(*arguments))


def _settled(case: Case) -> tuple[tuple, Any]:
  """The first arguments with which no choice is close, and their results."""
  program = _compiled(case.reference, case.draw(0), "cpu")
  for seed in range(_MOST_DRAWS):
    arguments = case.draw(seed)
    expected = jax.device_get(program(*arguments))
    noise = np.random.default_rng(seed).normal(size=arguments[0].shape).astype(np.float32)
    nudged = (program(arguments[0] + nudge * noise, *arguments[1:]) for nudge in (-_NUDGE, _NUDGE))
    if all(difference(jax.device_get(moved), expected, _MOVED).ok for moved in nudged):
      return arguments, expected
  raise RuntimeError(f"in {_MOST_DRAWS} draws some choice was always close: expected inputs that decide")


def _compiled(function: Callable, arguments: tuple, platform: str) -> Callable:
  return jax.jit(function).lower(*arguments).compile(compiler_options=quick_options(platform))


@functools.cache
def quick_options(platform: str) -> dict[str, bool | str]:
  """Options for programs that run once or twice, of those that this version of the compiler still has."""
  nothing, found = jax.jit(lambda: 0).lower(), {}
  for name, value in _COMPILED_QUICKLY.get(platform, {}).items():
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      nothing.compile(compiler_options={name: value})
      found[name] = value
  return found
