"""An encoder or a decoder: equal units of blocks, their parameters stacked on a leading axis and scanned over.

A unit is `moe_every` blocks, the last of them a MoE block, or one dense block. XLA compiles the unit once, so compiling
takes as long for 32 layers as for 4.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.models.block import Block, BlockOutput, Cache, Context, relative_bias
from moe.models.model_config import ModelConfig
from moe.nn.basic import dropout, split
from moe.nn.norm import RMSNorm
from moe.parallel.mesh import keep_rows

_REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Unit(nnx.Module):
  """`moe_every` blocks of which the last is MoE, or one dense block."""

  def __init__(self, config: ModelConfig, side: Literal["encoder", "decoder"], *, rngs: nnx.Rngs):
    router = config.encoder_router if side == "encoder" else config.decoder_router
    routers = [None] if router is None else [None] * (config.moe_every - 1) + [router]
    causal = side == "decoder"
    cross = causal and config.architecture == "encoder_decoder"
    self.blocks = nnx.List([Block(config, causal=causal, cross=cross, router=each, rngs=rngs) for each in routers])

  def __call__(self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None) -> BlockOutput:
    """The last block's output: the only one that can have metrics or an auxiliary loss."""
    for block, block_key in zip(self.blocks, split(key, len(self.blocks)), strict=True):
      output = block(x, context, training=training, key=block_key)
      x = output.x
    return output

  def init_cache(self, length: int, batch: int, memory: jax.Array | None) -> list[Cache]:
    return [block.init_cache(length, batch, memory) for block in self.blocks]

  def step(self, x: jax.Array, caches: list[Cache], context: Context) -> tuple[jax.Array, list[Cache]]:
    new = []
    for block, cache in zip(self.blocks, caches, strict=True):
      x, cache = block.step(x, cache, context)
      new.append(cache)
    return x, new


class Stack(nnx.Module):
  """Units one after the other, then a norm.

  Attributes:
    units: one `Unit` whose variables all lead with the axis of units.
    bias: the position biases, where `relative_bias` is "shared".
  """

  def __init__(self, config: ModelConfig, side: Literal["encoder", "decoder"], *, rngs: nnx.Rngs):
    layers = config.encoder_layers if side == "encoder" else config.decoder_layers
    router = config.encoder_router if side == "encoder" else config.decoder_router
    count = layers if router is None else layers // config.moe_every
    self.dropout, self.remat = config.dropout, config.remat
    self.units = nnx.split_rngs(splits=count)(nnx.vmap(lambda rngs: Unit(config, side, rngs=rngs)))(rngs)
    shared = config.relative_bias == "shared"
    self.bias = relative_bias(config, causal=side == "decoder", rngs=rngs) if shared else None
    self.norm = RMSNorm(config.d_model)

  def __call__(self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None) -> BlockOutput:
    """Applies all blocks to `x [B, T, d]`.

    Returns:
      The output; the auxiliary loss summed over MoE layers; metrics, routing and policy with a leading axis of them.
    """
    context = self._with_bias(context, lambda bias: bias(x.shape[1]))
    first_key, last_key, units_key = split(key, 3)
    graph, *variables = nnx.split(self.units, nnx.Param, ...)
    params, rest = variables
    count = jax.tree.leaves(params)[0].shape[0]
    unit_keys = None if key is None else jax.random.split(units_key, count)

    def unit(x, variables):
      params, rest, key = variables
      module = nnx.merge(graph, params, rest)
      output = module(keep_rows(x), context, training=training, key=key)
      report = output.auxiliary_loss, output.metrics, output.routing, output.policy
      return output.x, (*report, nnx.state(module, nnx.Not(nnx.Param)))

    if self.remat != "none":
      unit = jax.checkpoint(unit, policy=_REMAT[self.remat], prevent_cse=False)
    x = dropout(x, self.dropout, first_key)
    x, (losses, metrics, routing, policy, rest) = jax.lax.scan(unit, x, (params, rest, unit_keys))
    if jax.tree.leaves(rest):
      nnx.update(self.units, rest)
    return BlockOutput(dropout(self.norm(x), self.dropout, last_key), losses.sum(), metrics, routing, policy)

  def init_cache(self, batch: int, length: int, memory: jax.Array | None = None) -> list[Cache]:
    """Empty caches of all units (leading axis), with the keys and values of `memory [B, M, d]` where there is one."""
    graph, variables = nnx.split(self.units)
    return jax.lax.map(lambda v: nnx.merge(graph, v).init_cache(length, batch, memory), variables)

  def step(self, x: jax.Array, caches: list[Cache], context: Context) -> tuple[jax.Array, list[Cache]]:
    """The next token of each sequence, `x [B, 1, d]`, at row index `context.position`."""
    length = caches[0]["attention"]["keys"].shape[-2]
    context = self._with_bias(context, lambda bias: bias.row(context.position, length))
    graph, variables = nnx.split(self.units)

    def unit(x, inputs):
      variables, cache = inputs
      return nnx.merge(graph, variables).step(x, cache, context)

    x, caches = jax.lax.scan(unit, x, (variables, caches))
    return self.norm(x), caches

  def _with_bias(self, context: Context, evaluate) -> Context:
    return context if self.bias is None else dataclasses.replace(context, bias=evaluate(self.bias).astype(jnp.float32))
