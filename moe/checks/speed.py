"""Speed: layers and train steps next to dense ones of equal activated FLOPs, and next to what the device can do.

The ceilings are measured too: a large matrix product in bfloat16, and a pass over a large array.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.checks.journal import Finding, Journal
from moe.checks.layer_programs import LayerCase, LayerPrograms, Program, compared_routers
from moe.checks.step_programs import RunningStep, small_config
from moe.checks.timing import Times, dense_program, measure_in_turns
from moe.config import build
from moe.experts.dispatch import combine_slots, dispatch_slots
from moe.routing import RouterConfig, SlotRouting

_TOP_K = 2
_ONE_BY_ONE = threading.Lock()  # of programs that are compiled at the same time


@dataclasses.dataclass(frozen=True)
class LayerSize:
  """A layer to measure: E experts of d x f on so many tokens, in sequences that are routing groups."""

  experts: int
  d_model: int
  d_ff: int
  tokens: int
  sequence: int

  def __str__(self) -> str:
    return f"{self.experts} experts of {self.d_model} x {self.d_ff}, {self.tokens} tokens"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured on a machine.

  Attributes:
    product: rows and columns of the matrices of the product.
    megabytes: of the array that is read and written.
    layers: sizes of layers.
    step: sizes of the models, as of `small_config`.
    routers: names of the routers of layers and models, of `_routers`.
    repeats, calls: as of `measure_in_turns`.
  """

  product: int
  megabytes: int
  layers: tuple[LayerSize, ...]
  step: Mapping[str, Any]
  routers: tuple[str, ...] = ("expert choice", "top-2", "top-2 dropless")
  repeats: int = 5
  calls: int = 4


QUICK = Sizes(
  product=512,
  megabytes=32,
  layers=(LayerSize(4, 64, 128, 256, 64),),
  step={"d_model": 64, "d_ff": 128, "layers": 2, "batch": 4, "length": 64, "experts": 4},
  routers=("expert choice",),
  repeats=3,
  calls=1,
)
CPU = Sizes(
  product=2048,
  megabytes=256,
  layers=(LayerSize(8, 256, 1024, 4096, 512),),
  step={"d_model": 256, "d_ff": 1024, "layers": 4, "batch": 8, "length": 256, "experts": 8},
  calls=1,
)
ACCELERATOR = Sizes(
  product=8192,
  megabytes=512,
  layers=(LayerSize(8, 2048, 8192, 8192, 2048), LayerSize(32, 1024, 4096, 8192, 1024)),
  step={"d_model": 1024, "d_ff": 4096, "layers": 4, "batch": 8, "length": 1024, "experts": 8},
)
# The experts of Mixtral 8x7B (Jiang et al. 2024), without their gates; and many small ones with 512 tokens each.
LARGE_ACCELERATOR = Sizes(
  product=8192,
  megabytes=2048,
  layers=(LayerSize(8, 4096, 14336, 8192, 2048), LayerSize(64, 1024, 4096, 16384, 1024)),
  step={"d_model": 1024, "d_ff": 4096, "layers": 8, "batch": 16, "length": 1024, "experts": 16},
)


def sizes_for(platform: str, gib: float | None, *, quick: bool) -> Sizes:
  """What to measure on a device of this platform, with so much memory."""
  if quick:
    return QUICK
  if platform == "cpu":
    return CPU
  return LARGE_ACCELERATOR if gib and gib >= 40 else ACCELERATOR


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """What the device can do; NaN where it could not be measured.

  Attributes:
    flops: per second, of a large product of bfloat16 matrices.
    bandwidth: bytes per second, read and written.
  """

  flops: float = float("nan")
  bandwidth: float = float("nan")


def measure_speed(journal: Journal, sizes: Sizes) -> None:
  """Adds rows for the ceilings, layers, directions of travel and train steps."""
  ceilings = measure_ceilings(journal, sizes)
  for size in sizes.layers:
    measure_travel(journal, size, sizes, ceilings)
    measure_layers(journal, size, sizes, ceilings)
  measure_steps(journal, sizes, ceilings)


def measure_ceilings(journal: Journal, sizes: Sizes) -> Ceilings:
  """Adds two rows."""
  n, count = sizes.product, sizes.megabytes * 2**20 // 4

  def product() -> Finding:
    a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    rate = 2 * n**3 / _seconds(jax.jit(jnp.matmul), (a, b))
    return Finding(values={"flops_per_second": rate, "size": n}, about=f"{rate / 1e12:,.4g} TFLOP/s")

  def bandwidth() -> Finding:
    rate = 8 * count / _seconds(jax.jit(lambda x: 1.5 * x + 1), (jnp.zeros(count),))
    return Finding(values={"bytes_per_second": rate, "megabytes": sizes.megabytes}, about=f"{rate / 1e9:,.4g} GB/s")

  flops = journal.add("speed", f"ceiling of products, {n} x {n}, bfloat16", product)
  passed = journal.add("speed", f"ceiling of bandwidth, {sizes.megabytes} MiB read and written", bandwidth)
  return Ceilings(
    flops.values["flops_per_second"] if flops else float("nan"),
    passed.values["bytes_per_second"] if passed else float("nan"),
  )


def measure_travel(journal: Journal, size: LayerSize, sizes: Sizes, ceilings: Ceilings) -> None:
  """Adds a row for each direction, with slots that are as many as the tokens' choices."""
  groups, slots = size.tokens // size.sequence, _TOP_K * size.sequence // size.experts
  chosen = np.random.default_rng(0).permuted(
    np.tile(np.arange(size.sequence, dtype=np.int32), (groups, _TOP_K)), axis=1
  )
  token = jnp.asarray(chosen.reshape(groups, size.experts, slots))
  routing = SlotRouting(token, jnp.ones(token.shape, jnp.float32))
  tokens = jnp.ones((groups, size.sequence, size.d_model), jnp.bfloat16)
  moved = 2 * size.tokens * size.d_model  # bytes of the tokens

  def body(function: Callable, arguments: tuple, traffic: int) -> Finding:
    rate = traffic / _seconds(jax.jit(function), arguments)
    share = rate / ceilings.bandwidth
    values = {"bytes_per_second": rate, "share_of_ceiling": share}
    return Finding(values=values, about=f"{rate / 1e9:,.4g} GB/s, {share:.0%} of the ceiling")

  carried = jax.eval_shape(dispatch_slots, tokens, routing)
  outputs = jnp.ones(carried.shape, carried.dtype)
  back = functools.partial(combine_slots, n=size.sequence)
  both = {
    "token to expert": lambda: body(dispatch_slots, (tokens, routing), 2 * _TOP_K * moved),
    "expert to token": lambda: body(back, (outputs, routing), (_TOP_K + 1) * moved),
  }
  for direction, run in both.items():
    journal.add("speed", f"{direction}, {size}", run)


def measure_layers(journal: Journal, size: LayerSize, sizes: Sizes, ceilings: Ceilings) -> None:
  """Adds rows for compiling layers and for their time, forward and backward in bfloat16, next to the dense twin's."""

  def sparse(options: Mapping[str, Any]) -> Program:
    widths = (size.experts, size.d_model, size.d_ff)
    router = build(RouterConfig, options, "router")
    with _ONE_BY_ONE:  # so that they share the experts
      layer = LayerPrograms(LayerCase(router, size.tokens, size.sequence, *widths, "bfloat16"))
    return layer.whole()

  makers: dict[str, Callable[[], Program]] = {
    "dense": lambda: dense_program(size.tokens, size.d_model, _TOP_K * size.d_ff, jnp.bfloat16)
  }
  makers |= {name: functools.partial(sparse, options) for name, options in _routers(sizes, size.sequence).items()}
  programs = _made(journal, f"layer, {{}}, {size}", makers)
  flops = 3 * 2 * 2 * size.tokens * _TOP_K * size.d_model * size.d_ff
  _compare(journal, f"layer, {{}}, {size}", programs, size.tokens, flops, sizes, ceilings)


def measure_steps(journal: Journal, sizes: Sizes, ceilings: Ceilings) -> None:
  """Adds rows for compiling train steps of small language models on one device, and for their time."""
  step = dict(sizes.step)
  experts, tokens = step.pop("experts"), step["batch"] * step["length"]
  routers: dict[str, Mapping[str, Any] | None] = {"dense": None, **_routers(sizes, step["length"])}
  running: dict[str, RunningStep] = {}

  def make(name: str, router: Mapping[str, Any] | None) -> Program:
    some = experts if router else 0
    config = small_config(**step, width=_TOP_K * step["d_ff"], experts=some, router=router, dtype="bfloat16")
    running[name] = RunningStep(config, jax.devices()[:1])
    return running[name], ()

  at = f"{step['layers']} blocks of {step['d_model']} x {step['d_ff']}, {experts} experts, {tokens} tokens"
  makers = {name: functools.partial(make, name, router) for name, router in routers.items()}
  programs = _made(journal, f"train step, {{}}, {at}", makers)
  flops = running["dense"].flops if "dense" in running else None
  _compare(journal, f"train step, {{}}, {at}", programs, tokens, flops or float("nan"), sizes, ceilings)


def _routers(sizes: Sizes, group: int) -> dict[str, Mapping[str, Any]]:
  """Sections of those that are measured; expert choice has groups of so many tokens."""
  known = compared_routers(_TOP_K, group)
  return {name: known[name] for name in sizes.routers}


def _made(journal: Journal, label: str, makers: Mapping[str, Callable[[], Program]]) -> dict[str, Program]:
  """Those programs that could be compiled and have run once; a row for each."""
  programs: dict[str, Program] = {}

  def make(name: str) -> Finding:
    function, arguments = made = makers[name]()
    with _ONE_BY_ONE:  # so that the memory is one's own
      jax.block_until_ready(function(*arguments))
    programs[name] = made
    return Finding(about="compiled")

  journal.add_all("speed", {f"{label.format(name)}: compiles": functools.partial(make, name) for name in makers})
  return {name: programs[name] for name in makers if name in programs}


def _compare(
  journal: Journal,
  label: str,
  programs: Mapping[str, Program],
  tokens: int,
  flops: float,
  sizes: Sizes,
  ceilings: Ceilings,
) -> None:
  """Measures programs in turns, and adds a row for each; `flops` are the activated ones of the dense one."""
  measured: dict[str, Times] = {}

  def measure() -> Finding:
    measured.update(measure_in_turns(programs, sizes.repeats, sizes.calls))
    return Finding(about="measured in turns")

  def row(name: str) -> Finding:
    wall = float(np.median(measured[name].wall))
    ratio = measured[name].median / measured["dense"].median if "dense" in measured else float("nan")
    rate, share = flops / wall, flops / wall / ceilings.flops
    values = {
      "milliseconds": 1e3 * wall,
      "ratio_to_dense": ratio,
      "tokens_per_second": tokens / wall,
      "flops_per_second": rate,
      "share_of_ceiling": share,
      "wall_seconds": measured[name].wall,
    }
    about = f"{1e3 * wall:,.4g} ms, {ratio:.2f} x dense, {rate / 1e12:,.3g} TFLOP/s, {share:.0%} of the ceiling"
    return Finding(values=values, about=about)

  journal.add("speed", f"{label.format('all')}: run", measure)
  for name in measured:
    journal.add("speed", label.format(name), functools.partial(row, name))


def _seconds(function: Callable, arguments: tuple, calls: int = 10) -> float:
  """The least time of a call, of three rounds of calls one right after the other."""
  jax.block_until_ready(function(*arguments))
  best = float("inf")
  for _ in range(3):
    began = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    best = min(best, (time.perf_counter() - began) / calls)
  return best
