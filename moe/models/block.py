"""The one block of every model: attention, cross-attention if there is an encoder, feed-forward network or experts.

Each is a pre-norm residual branch: `x + f(norm(x))`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.experts import MoE
from moe.models.model_config import ModelConfig, MoEConfig
from moe.nn.attention import Attention
from moe.nn.dropout import dropout, split_key
from moe.nn.feed_forward import FeedForward
from moe.nn.norm import LayerNorm, RMSNorm, make_norm
from moe.nn.relative_position import RelativeBias
from moe.nn.streams import named_streams

# Of attention, of the encoder's output, of the router; and whatever else a kind of block remembers.
Cache = dict[str, Any]
# What a block reports: `moe`, the `LayerReport` of its MoE layer; `depth`, metrics of a block that tokens may pass by.
Reports = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What all blocks of a stack read besides the tokens; Q is T, or 1 when decoding.

  Attributes:
    mask: bool, broadcastable to `[B, h, Q, T]`, for self-attention.
    ids: int32 `[B, Q]`, the tokens the stack reads; None for patches of pictures, which have none.
    positions: int32 `[B, Q]` within each segment, or within the routers' row when decoding.
    segments: int32 `[B, Q]`, 0 for padding; None when decoding, unless some tokens pass the block by: 0 for these.
    position: int32 scalar, the row index of the one query; None unless decoding.
    bias: as in `Attention`, for the T keys of a row, if the stack's blocks share it; in place of a block's own.
    memory: `[R, M, d]`, the encoder's output; None without one, and when decoding. Each of its rows is read by B / R
      consecutive rows, whose answers it serves; R is B but where several answers are compared.
    memory_mask: bool `[R, 1, 1, M]`, or `[B, 1, Q, M]` if R is B.
    row_length: when decoding, after how many tokens routers begin a new row.
    places: int `[T]`, where the tokens are, for the distances between them; None for their indices in the row.
  """

  mask: jax.Array
  ids: jax.Array | None
  positions: jax.Array
  segments: jax.Array | None = None
  position: jax.Array | None = None
  bias: jax.Array | None = None
  memory: jax.Array | None = None
  memory_mask: jax.Array | None = None
  row_length: int = dataclasses.field(default=0, metadata={"static": True})
  places: np.ndarray | None = None


def relative_bias(config: ModelConfig, *, causal: bool, rngs: nnx.Rngs) -> RelativeBias:
  """The table of position biases of one block, or of a whole stack."""
  return RelativeBias(
    config.num_heads,
    causal=causal,
    buckets=config.relative_buckets,
    max_distance=config.relative_max_distance,
    std=config.d_model**-0.5,
    rngs=rngs,
  )


class Block(nnx.Module):
  """One layer of a model; with `moe` its feed-forward network is a MoE layer.

  Args:
    config: of the model.
    moe: of the stack's MoE layers; None for a dense block.
    causal: whether later keys are masked and need no position biases.
    cross: whether the block attends to an encoder's output.
    rngs: parameters are drawn from its stream `params`.
  """

  def __init__(self, config: ModelConfig, moe: MoEConfig | None, *, causal: bool, cross: bool, rngs: nnx.Rngs):
    d, dtype, of = config.d_model, config.compute_dtype, named_streams(rngs)
    self.dropout = config.dropout

    def norm() -> RMSNorm | LayerNorm:
      return make_norm(config.norm, d, config.norm_epsilon)

    def attention(name: str) -> Attention:
      shape = config.num_heads, config.d_head
      return Attention(d, *shape, dtype, init=config.kernel_init, bias=config.bias, rngs=of(name))

    def feed_forward() -> FeedForward:
      form, init = config.feed_forward, config.kernel_init
      return FeedForward(d, config.d_ff, form, dtype, init=init, bias=config.bias, rngs=of("feed_forward"))

    self.attention_norm, self.attention = norm(), attention("attention")
    per_layer = config.relative_bias == "per_layer"
    self.bias = relative_bias(config, causal=causal, rngs=of("bias")) if per_layer else None
    self.cross_norm, self.cross_attention = (norm(), attention("cross_attention")) if cross else (None, None)
    self.feed_forward_norm = norm()
    self.feed_forward = None if moe else feed_forward()
    self.moe = _moe_layer(config, moe, of("moe")) if moe else None

  def __call__(
    self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None
  ) -> tuple[jax.Array, Reports]:
    """Applies the block to whole sequences `x [B, T, d]`; `key` feeds dropout and random routers.

    Returns:
      `[B, T, d]`, and the reports of its parts.
    """
    keys, rate, bias = split_key(key, 7), self.dropout, context.bias
    if bias is None and self.bias is not None:
      bias = self.bias(x.shape[1], context.places)
    y = self.attention_norm(x)
    x += dropout(self.attention(y, y, context.mask, bias, rate=rate, key=keys[0]), rate, keys[1])
    if self.cross_attention is not None:
      y = self.cross_norm(x).reshape(len(context.memory), -1, x.shape[-1])  # [R, (B / R) Q, d]
      y = self.cross_attention(y, context.memory, context.memory_mask, rate=rate, key=keys[2])
      x += dropout(y.reshape(x.shape), rate, keys[3])
    y, reports = self.feed_forward_norm(x), {}
    if self.moe is None:
      with jax.named_scope("feed_forward"):
        y = self.feed_forward(y, rate=rate, key=keys[4])
    else:
      y, report = self.moe(y, **_about_tokens(context), training=training, key=keys[5])
      report.metrics["branch_norm_ratio"] = _norm_ratio(y, x, context.segments > 0)
      reports = {"moe": report}
    return x + dropout(y, rate, keys[6]), reports

  def init_cache(self, batch: int, length: int, row_length: int, memory: jax.Array | None) -> Cache:
    """The cache for decoding `batch` sequences of at most `length` tokens; `memory [B, M, d]` as in `Context`."""
    cache = {"attention": self.attention.init_cache(batch, length)}
    if self.cross_attention is not None:
      cache["memory"] = dict(zip(("keys", "values"), self.cross_attention.project(memory), strict=True))
    if self.moe is not None:
      cache["router"] = self.moe.init_decode_state(batch, row_length)
    return cache

  def step(self, x: jax.Array, cache: Cache, context: Context) -> tuple[jax.Array, Cache]:
    """The next token of each sequence, `x [B, 1, d]`: what `__call__` would give at its position in evaluation."""
    new = dict(cache)
    length = cache["attention"]["keys"].shape[-2]
    bias = context.bias if self.bias is None else self.bias.row(context.position, length)
    y = self.attention_norm(x)
    y, new["attention"] = self.attention.step(y, cache["attention"], context.position, context.mask, bias)
    x += y
    if self.cross_attention is not None:
      memory = cache["memory"]
      x += self.cross_attention.attend(self.cross_norm(x), memory["keys"], memory["values"], context.memory_mask)
    y = self.feed_forward_norm(x)
    if self.moe is None:
      with jax.named_scope("feed_forward"):
        return x + self.feed_forward(y), new
    state = self._router_state(cache["router"], context)
    y, new["router"] = self.moe.decode(y, state, **_about_tokens(context))
    return x + y, new

  def _router_state(self, state: dict[str, jax.Array], context: Context) -> dict[str, jax.Array]:
    """The router's state before a token; after every `row_length` tokens it starts over, as for a new row."""
    begins = context.position % context.row_length == 0
    new = self.moe.init_decode_state(context.ids.shape[0], context.row_length)
    return jax.tree.map(lambda fresh, old: jnp.where(begins, fresh, old), new, state)


def _about_tokens(context: Context) -> dict[str, jax.Array | None]:
  """What a MoE layer reads besides the tokens."""
  return {"segments": context.segments, "ids": context.ids, "positions": context.positions}


def _norm_ratio(branch: jax.Array, stream: jax.Array, mask: jax.Array) -> jax.Array:
  """Float32 scalar, the root mean square of a branch over that of the stream it is added to, over real tokens."""

  def total(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32)), where=mask[..., None])

  return jnp.sqrt(total(branch) / jnp.maximum(total(stream), jnp.finfo(jnp.float32).tiny))


def _moe_layer(config: ModelConfig, moe: MoEConfig, rngs: nnx.Rngs) -> MoE:
  return MoE(
    config.d_model,
    moe.num_experts,
    moe.d_ff or config.d_ff,
    moe.router,
    form=moe.feed_forward,
    dtype=config.compute_dtype,
    shared_experts=moe.shared_experts,
    bias=moe.bias,
    router_init_scale=moe.router_init_scale,
    gate_scale=moe.gate_scale,
    dropout=config.dropout if config.expert_dropout is None else config.expert_dropout,
    vocab_size=config.site(moe).vocab_size,
    init=config.kernel_init,
    read_files=False,
    rngs=rngs,
  )
