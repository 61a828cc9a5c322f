"""Fair timing: programs take turns in one process, next to a dense twin."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of every call.

  Attributes:
    work: what is compared: CPU time of all cores on a CPU, which other processes disturb least; elsewhere wall time.
    wall: wall time, from the call to the last result.
  """

  work: list[float]
  wall: list[float]

  @property
  def median(self) -> float:
    return float(np.median(self.work))


def forward_and_backward(apply: Callable) -> Callable:
  """A function from `(params, x, cotangent)` to `apply(params, x)` and the gradients of `params` and `x`."""

  def run(params, x, cotangent):
    y, pull_back = jax.vjp(apply, params, x)
    return y, pull_back(cotangent)

  return run


def dense_program(tokens: int, d_model: int, width: int, dtype: jnp.dtype = jnp.float32) -> tuple[Callable, tuple]:
  """The dense twin, a flattened two-matrix GELU network of hidden width `width`: compiled, and its arguments."""
  keys = jax.random.split(jax.random.key(0), 4)
  x, cotangent = (jax.random.normal(key, (tokens, d_model), dtype) for key in keys[:2])

  def dense(params, x):
    up, down = (p.astype(dtype) for p in params)
    return jax.nn.gelu(x @ up) @ down

  up = jax.random.normal(keys[2], (d_model, width)) * d_model**-0.5
  down = jax.random.normal(keys[3], (width, d_model)) * width**-0.5
  arguments = ((up, down), x, cotangent)
  return jax.jit(forward_and_backward(dense)).lower(*arguments).compile(), arguments


# Calls that are not timed: memory is touched for the first time and the allocator's heap grows to its final size.
_WARM_UP = 3


def measure_in_turns(compiled: Mapping[str, tuple[Callable, tuple]], repeats: int, calls: int = 1) -> dict[str, Times]:
  """Times `repeats` calls of every program; the programs take turns.

  Args:
    compiled: functions and their arguments, by name.
    repeats: turns.
    calls: of a turn, one right after the other, so that an accelerator does not wait for Python; the times are theirs
      divided by their number.
  """
  on_cpu = jax.default_backend() == "cpu"
  times = {name: Times([], []) for name in compiled}
  for repeat in range(_WARM_UP + repeats):
    for name, (function, args) in compiled.items():
      work, wall = time.process_time(), time.perf_counter()
      for _ in range(calls):
        result = function(*args)
      jax.block_until_ready(result)
      work, wall = (time.process_time() - work) / calls, (time.perf_counter() - wall) / calls
      if repeat >= _WARM_UP:
        times[name].work.append(work if on_cpu else wall)
        times[name].wall.append(wall)
  return times
