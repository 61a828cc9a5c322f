"""An encoder or a decoder: its blocks in repeated units, each scanned over, so that XLA compiles a unit once.

With experts in every second layer there is one unit, a dense and a MoE block, and compiling 32 layers takes as long as
compiling 4. Any placement of experts is split into runs of such units with as few blocks to compile as possible.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.models.block import Block, Cache, Context, Reports, relative_bias
from moe.models.depth import DepthBlock
from moe.models.model_config import LayerKind, ModelConfig, StackConfig
from moe.nn.dropout import dropout, split_key
from moe.nn.norm import make_norm
from moe.nn.streams import named_streams
from moe.parallel.kept import POLICIES
from moe.parallel.mesh import keep_rows
from moe.parallel.sharding import name_axes
from moe.routing import Policy, Router, RouterState, Routing

Kind = TypeVar("Kind", bound=Hashable)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackOutput:
  """A stack's output for a batch.

  Attributes:
    x: `[B, T, d]`.
    auxiliary_loss: float32 scalar, weighted; the stack's part of the model's sum or mean over MoE layers, and the
      loss of what predicts where tokens pass blocks by.
    metrics, routing, policy, seen: of the MoE layers, stacked along a leading axis, first layer first; {}, None, None
      and {} for a dense stack. Metrics `depth/...` are of the blocks that tokens may pass by. Where there are such, no
      routing is reported in training: MoE layers then differ in the number of their tokens.
  """

  x: jax.Array
  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  routing: Routing | None
  policy: Policy | None
  seen: dict[str, jax.Array]


def units_of(kinds: Sequence[Kind]) -> list[tuple[tuple[Kind, ...], int]]:
  """Layers as repeated units: each unit's layers and repeats, with the fewest layers in all units together.

  Args:
    kinds: for each layer what it is, such as `StackConfig.kinds`; equal ones are compiled once.
  """
  layers = tuple(kinds)
  # For each layer, the layers to compile from there to the end, and the units.
  best: list[tuple[int, tuple[tuple[tuple[Kind, ...], int], ...]]] = [(len(layers) + 1, ())] * (len(layers) + 1)
  best[-1] = 0, ()
  for start in reversed(range(len(layers))):
    least, chosen = best[start]
    for size in range(1, len(layers) - start + 1):
      if size > least:
        break  # more layers than all units of the best division together
      unit = layers[start : start + size]
      for repeats in itertools.count(1):
        end = start + size * repeats
        if layers[end - size : end] != unit:
          break
        cost, rest = best[end]
        if (size + cost, 1 + len(rest)) < (least, len(chosen)):
          least, chosen = size + cost, ((unit, repeats), *rest)
    best[start] = least, chosen
  return list(best[0][1])


class Unit(nnx.Module):
  """Consecutive blocks of a stack; `kinds` says what each of them is, `keys` seed their parameters."""

  def __init__(
    self,
    config: ModelConfig,
    stack: StackConfig,
    kinds: Sequence[LayerKind],
    *,
    causal: bool,
    cross: bool,
    keys: jax.Array,
  ):
    def block(kind: LayerKind, key: jax.Array) -> Block:
      moe, rngs = stack.moe if kind.experts else None, nnx.Rngs(key)
      if kind.passable:
        return DepthBlock(config, moe, stack.depth, causal=causal, cross=cross, rngs=rngs)
      return Block(config, moe, causal=causal, cross=cross, rngs=rngs)

    self.blocks = nnx.List([block(*each) for each in zip(kinds, keys, strict=True)])

  def __call__(
    self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None
  ) -> tuple[jax.Array, list[Reports]]:
    """`[B, T, d]`, and the reports of every block."""
    reports = []
    for block, block_key in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
      x, of_block = block(x, context, training=training, key=block_key)
      reports.append(of_block)
    return x, reports

  def init_cache(self, batch: int, length: int, row_length: int, memory: jax.Array | None) -> list[Cache]:
    return [block.init_cache(batch, length, row_length, memory) for block in self.blocks]

  def step(self, x: jax.Array, caches: list[Cache], context: Context) -> tuple[jax.Array, list[Cache]]:
    new = []
    for block, cache in zip(self.blocks, caches, strict=True):
      x, cache = block.step(x, cache, context)
      new.append(cache)
    return x, new


class Stack(nnx.Module):
  """All blocks, then a norm.

  Attributes:
    units: `Unit` modules whose variables all have a leading axis of repeats.
    bias: the position biases, if `relative_bias` is "shared".
  """

  def __init__(self, config: ModelConfig, stack: StackConfig, *, causal: bool, cross: bool = False, rngs: nnx.Rngs):
    self.dropout, self.remat, self.auxiliary_scale = config.dropout, config.remat, config.auxiliary_scale
    self.has_depth = stack.depth is not None
    plan = units_of(stack.kinds)
    self.repeats = tuple(repeats for _, repeats in plan)

    of, numbers = named_streams(rngs), itertools.count()

    def repeated(kinds: tuple[LayerKind, ...], repeats: int) -> Unit:
      def make(keys):
        return Unit(config, stack, kinds, causal=causal, cross=cross, keys=keys)

      # By the layer's number: where the experts are changes nothing else in any layer.
      keys = [[of(f"layer_{next(numbers)}").params() for _ in kinds] for _ in range(repeats)]
      unit = nnx.vmap(make)(jnp.stack([jnp.stack(each) for each in keys]))
      name_axes(unit, "layer")
      return unit

    self.units = nnx.List([repeated(*each) for each in plan])
    shared = config.relative_bias == "shared"
    self.bias = relative_bias(config, causal=causal, rngs=of("bias")) if shared else None
    self.norm = make_norm(config.norm, config.d_model, config.norm_epsilon)

  def __call__(self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None) -> StackOutput:
    """Applies all blocks to `x [B, T, d]`."""
    context = self._with_bias(context, lambda bias: bias(x.shape[1], context.places))
    first_key, last_key, units_key = split_key(key, 3)
    unit_keys = None if units_key is None else jax.random.split(units_key, sum(self.repeats))
    x = dropout(x, self.dropout, first_key)
    reports: list[Reports] = []
    done = 0
    for unit, repeats in zip(self.units, self.repeats, strict=True):
      keys = None if unit_keys is None else unit_keys[done : done + repeats]
      x, found = self._scan(unit, x, context, training, keys)
      reports.append(found)
      done += repeats
    return _output(dropout(self.norm(x), self.dropout, last_key), reports, self.auxiliary_scale)

  def _scan(
    self, unit: Unit, x: jax.Array, context: Context, training: bool, keys: jax.Array | None
  ) -> tuple[jax.Array, Reports]:
    """Applies one unit with all its repeats; each report has a leading axis of the layers that have one."""
    graph, variables = nnx.split(unit)

    def body(x: jax.Array, of_unit: Any) -> tuple[jax.Array, list[Reports]]:
      variables, key = of_unit
      return nnx.merge(graph, variables)(keep_rows(x), context, training=training, key=key)

    if self.remat != "none":
      body = jax.checkpoint(body, policy=POLICIES[self.remat], prevent_cse=False)
    x, found = jax.lax.scan(body, x, (variables, keys))
    reports = _by_name(found)
    if self.has_depth and training:  # layers route unequal numbers of tokens, which cannot be stacked
      reports["moe"] = [dataclasses.replace(each, routing=None) for each in reports.get("moe", [])]
    # Interleaves the unit's layers: [repeats, layers of a unit, ...] to [layers, ...].
    interleaved = lambda *leaves: jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:])  # noqa: E731
    return x, {name: jax.tree.map(interleaved, *each) for name, each in reports.items() if each}

  def load_router_state(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets states of the routers.

    Args:
      arrays: by the state's name, one for all MoE layers or with a leading axis of these.
    """
    for router, layers in self._routers():
      for name, array in arrays.items():
        state: RouterState = getattr(router, name)
        mine = array[layers] if array.ndim == state.ndim else array
        state[...] = jnp.broadcast_to(jnp.asarray(mine, state.dtype), state.shape)

  def learn(self, seen: dict[str, jax.Array]) -> None:
    """Moves the routers' states once, after a training step.

    Args:
      seen: `StackOutput.seen` of the step's M micro-batches, each array stacked along a leading axis M.
    """
    if not seen:
      return
    for router, layers in self._routers():
      mine = {name: array[:, layers] for name, array in seen.items()}  # [M, repeats, ...]
      nnx.vmap(lambda router, seen: router.learn(seen), in_axes=(0, 1), out_axes=None)(router, mine)

  def _routers(self) -> Iterator[tuple[Router, slice]]:
    """The routers, whose variables have a leading axis of repeats, and which of the MoE layers these are."""
    first = 0
    for unit, repeats in zip(self.units, self.repeats, strict=True):
      routers = [block.moe.router for block in unit.blocks if block.moe is not None]
      end = first + repeats * len(routers)
      yield from ((router, slice(first + i, end, len(routers))) for i, router in enumerate(routers))
      first = end

  def init_cache(self, batch: int, length: int, row_length: int, memory: jax.Array | None = None) -> list[list[Cache]]:
    """Empty caches of all units (leading axis of repeats), with the keys and values of `memory [B, M, d]`, if any."""

    def caches(unit: Unit) -> list[Cache]:
      graph, variables = nnx.split(unit)
      return jax.lax.map(lambda v: nnx.merge(graph, v).init_cache(batch, length, row_length, memory), variables)

    return [caches(unit) for unit in self.units]

  def step(self, x: jax.Array, caches: list[list[Cache]], context: Context) -> tuple[jax.Array, list[list[Cache]]]:
    """The next token of each sequence, `x [B, 1, d]`, at row index `context.position`."""
    length = caches[0][0]["attention"]["keys"].shape[-2]
    context = self._with_bias(context, lambda bias: bias.row(context.position, length))
    new = []
    for unit, cache in zip(self.units, caches, strict=True):
      graph, variables = nnx.split(unit)

      def body(x, inputs, graph=graph):
        variables, cache = inputs
        return nnx.merge(graph, variables).step(x, cache, context)

      x, cache = jax.lax.scan(body, x, (variables, cache))
      new.append(cache)
    return self.norm(x), new

  def _with_bias(self, context: Context, evaluate: Any) -> Context:
    return context if self.bias is None else dataclasses.replace(context, bias=evaluate(self.bias).astype(jnp.float32))


def _by_name(reports: Sequence[Reports]) -> dict[str, list[Any]]:
  """The reports of each name, in order."""
  names = dict.fromkeys(name for each in reports for name in each)
  return {name: [each[name] for each in reports if name in each] for name in names}


def _output(x: jax.Array, reports: Sequence[Reports], auxiliary_scale: float) -> StackOutput:
  """Joins the reports of runs of layers, each with a leading axis of layers."""
  every = {
    name: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each) for name, each in _by_name(reports).items()
  }
  depth, moe = every.get("depth", {}), every.get("moe")
  loss = depth["depth/loss"].sum() if depth else jnp.float32(0)
  if moe is None:
    return StackOutput(x, loss, depth, None, None, {})
  loss += auxiliary_scale * moe.auxiliary_loss.sum()
  return StackOutput(x, loss, moe.metrics | depth, moe.routing, moe.policy, moe.seen)
