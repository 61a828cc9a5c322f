"""An encoder or a decoder: its blocks in repeated units, each scanned over, so that XLA compiles a unit once.

With experts in every second layer there is one unit, a dense and a MoE block, and compiling 32 layers takes as long as
compiling 4. Any placement of experts is split into runs of such units with as few blocks to compile as possible.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.experts import LayerReport
from moe.models.block import Block, Cache, Context, relative_bias
from moe.models.model_config import ModelConfig, MoEConfig, StackConfig
from moe.nn.dropout import dropout, split_key
from moe.nn.norm import make_norm
from moe.nn.streams import named_streams
from moe.parallel.mesh import keep_rows
from moe.parallel.sharding import name_axes
from moe.routing import Policy, Router, RouterState, Routing

_REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackOutput:
  """A stack's output for a batch.

  Attributes:
    x: `[B, T, d]`.
    auxiliary_loss: float32 scalar, weighted; the stack's part of the model's sum or mean over MoE layers.
    metrics, routing, policy, seen: of the MoE layers, stacked along a leading axis, first layer first; {}, None, None
      and {} for a dense stack.
  """

  x: jax.Array
  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  routing: Routing | None
  policy: Policy | None
  seen: dict[str, jax.Array]


def units_of(has_experts: Sequence[bool]) -> list[tuple[tuple[bool, ...], int]]:
  """Layers as repeated units: each unit's layers and repeats, with the fewest layers in all units together.

  Args:
    has_experts: for each layer whether it is a MoE layer.
  """
  layers = tuple(has_experts)
  # For each layer, the layers to compile from there to the end, and the units.
  best: list[tuple[int, tuple[tuple[tuple[bool, ...], int], ...]]] = [(0, ())] * (len(layers) + 1)
  for start in reversed(range(len(layers))):
    found = []
    for size in range(1, len(layers) - start + 1):
      unit = layers[start : start + size]
      for repeats in itertools.count(1):
        end = start + size * repeats
        if layers[end - size : end] != unit:
          break
        cost, rest = best[end]
        found.append((size + cost, ((unit, repeats), *rest)))
    best[start] = min(found, key=lambda one: (one[0], len(one[1])))
  return list(best[0][1])


class Unit(nnx.Module):
  """Consecutive blocks; `has_experts` says which of them are MoE blocks, `keys` seed their parameters."""

  def __init__(
    self,
    config: ModelConfig,
    moe: MoEConfig | None,
    has_experts: Sequence[bool],
    *,
    causal: bool,
    cross: bool,
    keys: jax.Array,
  ):
    def block(experts: bool, key: jax.Array) -> Block:
      return Block(config, moe if experts else None, causal=causal, cross=cross, rngs=nnx.Rngs(key))

    self.blocks = nnx.List([block(*each) for each in zip(has_experts, keys, strict=True)])

  def __call__(
    self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None
  ) -> tuple[jax.Array, list[LayerReport]]:
    """`[B, T, d]`, and the reports of the MoE blocks."""
    reports = []
    for block, block_key in zip(self.blocks, split_key(key, len(self.blocks)), strict=True):
      x, report = block(x, context, training=training, key=block_key)
      reports += [] if report is None else [report]
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
    plan = units_of(stack.has_experts)
    self.repeats = tuple(repeats for _, repeats in plan)

    of, numbers = named_streams(rngs), itertools.count()

    def repeated(has_experts: tuple[bool, ...], repeats: int) -> Unit:
      def make(keys):
        return Unit(config, stack.moe, has_experts, causal=causal, cross=cross, keys=keys)

      # By the layer's number: where the experts are changes nothing else in any layer.
      keys = [[of(f"layer_{next(numbers)}").params() for _ in has_experts] for _ in range(repeats)]
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
    reports, done = [], 0
    for unit, repeats in zip(self.units, self.repeats, strict=True):
      keys = None if unit_keys is None else unit_keys[done : done + repeats]
      x, found = self._scan(unit, x, context, training, keys)
      reports += found
      done += repeats
    return _output(dropout(self.norm(x), self.dropout, last_key), reports, self.auxiliary_scale)

  def _scan(
    self, unit: Unit, x: jax.Array, context: Context, training: bool, keys: jax.Array | None
  ) -> tuple[jax.Array, list[LayerReport]]:
    """Applies one unit with all its repeats; the reports have a leading axis of its MoE layers."""
    graph, variables = nnx.split(unit)

    def body(x: jax.Array, of_unit: Any) -> tuple[jax.Array, list[LayerReport]]:
      variables, key = of_unit
      return nnx.merge(graph, variables)(keep_rows(x), context, training=training, key=key)

    if self.remat != "none":
      body = jax.checkpoint(body, policy=_REMAT[self.remat], prevent_cse=False)
    x, reports = jax.lax.scan(body, x, (variables, keys))
    if len(reports) > 1:  # interleaves the unit's layers: [repeats, layers of a unit, ...] to [layers, ...]
      reports = [jax.tree.map(lambda *leaves: jnp.stack(leaves, 1).reshape(-1, *leaves[0].shape[1:]), *reports)]
    return x, reports

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


def _output(x: jax.Array, reports: list[LayerReport], auxiliary_scale: float) -> StackOutput:
  """Joins the reports of runs of layers, each with a leading axis of layers."""
  if not reports:
    return StackOutput(x, jnp.float32(0), {}, None, None, {})
  every = reports[0] if len(reports) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *reports)
  auxiliary_loss = auxiliary_scale * every.auxiliary_loss.sum()
  return StackOutput(x, auxiliary_loss, every.metrics, every.routing, every.policy, every.seen)
