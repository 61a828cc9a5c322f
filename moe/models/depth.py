"""Mixture-of-Depths (Raposo et al. 2024, arXiv 2404.02258): a block that tokens may pass by on the residual stream.

It is expert choice with one expert, the block: in training it takes the k tokens of each row that score highest and is
computed for these alone, attention included. With the score r = x w, a token that is taken leaves the block as
x + r (block(x) - x) (equation 1), so that the score learns from the loss; all others leave it as they came.

Whether a token is among the k highest depends on later tokens, so the choice leaks in training. In evaluation and in
decoding nothing is ranked: a small network that reads the token alone predicts whether it would be (section 3.5, second
method). It learns from the choices made in training, and its loss moves nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.models.block import Block, Cache, Context, Reports
from moe.models.model_config import DepthConfig, ModelConfig, MoEConfig
from moe.nn.attention import segment_positions
from moe.nn.linear import affine, normal
from moe.nn.relative_position import expanded
from moe.nn.streams import named_streams
from moe.routing.scores import router_logits
from moe.routing.solvers.highest import highest


class DepthRouter(nnx.Module):
  """Scores tokens, and predicts which of them will be taken.

  Attributes:
    kernel: `[d, 1]`, w; scores of tokens of unit size have unit variance at first.
    hidden, out: `[d + 1, h]` and `[h + 1, 1]`, the predictor's layers; the last rows are biases.
  """

  def __init__(self, d_model: int, width: int, rngs: nnx.Rngs):
    of = named_streams(rngs)
    self.kernel = normal(of("kernel"), (d_model, 1), d_model**-0.5)
    self.hidden = normal(of("hidden"), (d_model + 1, width), d_model**-0.5)
    self.out = normal(of("out"), (width + 1, 1), width**-0.5)

  @jax.named_scope("router")
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `x [B, T, d]` the scores and the logits of being taken, float32 `[B, T]` each."""
    constant = jax.lax.stop_gradient(x).astype(jnp.float32)
    logits = affine(jax.nn.relu(affine(constant, self.hidden[...])), self.out[...])
    return router_logits(x, self.kernel[...])[..., 0], logits[..., 0]


class DepthBlock(Block):
  """A block that tokens may pass by; otherwise as the block without it, with the same first parameters.

  In evaluation it is computed for every token, and those that pass by are hidden from all others: they are no keys of
  attention, and take no slot of an expert. So any number of tokens may be taken, and experts have the slots of a whole
  row.

  Args:
    config, moe, causal, cross, rngs: as of `Block`.
    depth: how many tokens are taken, and the size of the predictor.
  """

  def __init__(
    self,
    config: ModelConfig,
    moe: MoEConfig | None,
    depth: DepthConfig,
    *,
    causal: bool,
    cross: bool,
    rngs: nnx.Rngs,
  ):
    super().__init__(config, moe, causal=causal, cross=cross, rngs=rngs)
    self.depth = depth
    self.router = DepthRouter(config.d_model, depth.predictor_width, named_streams(rngs)("router"))

  def __call__(
    self, x: jax.Array, context: Context, *, training: bool, key: jax.Array | None
  ) -> tuple[jax.Array, Reports]:
    """See `Block`; the reports have `depth` too, the metrics of `choice_metrics`."""
    real = context.segments > 0
    scores, logits = self.router(x)
    index = highest_in_order(scores, real, self.depth.tokens(x.shape[1]))
    among = _put(jnp.zeros_like(real), index, jnp.ones_like(index, bool)) & real
    if training:
      taken, given = among, _at(x, index)
      y, reports = super().__call__(given, self._gathered(context, index, x.shape[1]), training=True, key=key)
      x = _put(x, index, _weighted(given, y, _at(scores, index)))
    else:
      taken = (logits > 0) & real
      hidden = dataclasses.replace(
        context, mask=context.mask & taken[:, None, None], segments=jnp.where(taken, context.segments, 0)
      )
      y, reports = super().__call__(x, hidden, training=False, key=key)
      x = jnp.where(taken[..., None], _weighted(x, y, scores), x)
    return x, reports | {"depth": choice_metrics(logits, among, taken, real)}

  def init_cache(self, batch: int, length: int, row_length: int, memory: jax.Array | None) -> Cache:
    """See `Block`; with `taken`, bool `[B, T]`, the positions whose keys may be attended to."""
    cache = super().init_cache(batch, length, row_length, memory)
    return cache | {"taken": jnp.zeros((batch, length), bool)}

  def step(self, x: jax.Array, cache: Cache, context: Context) -> tuple[jax.Array, Cache]:
    """See `Block`."""
    scores, logits = self.router(x)
    taken = logits > 0  # [B, 1]
    keys = jax.lax.dynamic_update_slice_in_dim(cache["taken"], taken, context.position, axis=1)
    hidden = dataclasses.replace(context, mask=context.mask & keys[:, None, None], segments=taken.astype(jnp.int32))
    y, new = super().step(x, cache, hidden)
    return jnp.where(taken[..., None], _weighted(x, y, scores), x), new | {"taken": keys}

  def _gathered(self, context: Context, index: jax.Array, length: int) -> Context:
    """The context of the tokens at `index [B, k]` of rows of this length, which keep their distances."""
    bias = context.bias if self.bias is None else self.bias(length, context.places)
    segments = _at(context.segments, index)
    return dataclasses.replace(
      context,
      mask=_pairs_at(context.mask, index),
      ids=_at(context.ids, index),
      positions=segment_positions(segments),  # routers count the tokens that they see
      segments=segments,
      bias=None if bias is None else _pairs_at(expanded(bias, length), index),
      memory_mask=None if context.memory_mask is None else _queries_at(context.memory_mask, index),
    )


def highest_in_order(scores: jax.Array, real: jax.Array, k: int) -> jax.Array:
  """int32 `[B, k]`, ascending: the tokens of each row with the highest scores; padding only after all real ones.

  Args:
    scores: float32 `[B, T]`.
    real: bool `[B, T]`, False for padding.
    k: at most T.
  """
  return jnp.sort(highest(jnp.where(real, jax.lax.stop_gradient(scores), -jnp.inf), k)[1], axis=-1)


def choice_metrics(logits: jax.Array, among: jax.Array, taken: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
  """Float32 scalars over the real tokens.

  Args:
    logits: float32 `[B, T]`, the predictor's.
    among: bool `[B, T]`, the real tokens among the highest of their row, which it predicts.
    taken: bool `[B, T]`, the real tokens that the block has taken: in training those, in evaluation the predicted ones.
    real: bool `[B, T]`, False for padding.

  Returns:
    `depth/taken`, the share of the tokens that was taken; `depth/accuracy`, of the predictor; `depth/loss`, its
    cross-entropy in nats.
  """

  def mean(values: jax.Array) -> jax.Array:
    return jnp.sum(values, where=real, dtype=jnp.float32) / jnp.maximum(real.sum(), 1)

  loss = jax.nn.softplus(logits) - jnp.where(among, logits, 0.0)
  return {
    "depth/taken": mean(taken),
    "depth/accuracy": mean((logits > 0) == among),
    "depth/loss": mean(loss),
  }


def _weighted(x: jax.Array, y: jax.Array, scores: jax.Array) -> jax.Array:
  """`x + r (y - x)`, `[B, T, d]`, with the scores r `[B, T]`."""
  return x + (scores[..., None] * (y - x).astype(jnp.float32)).astype(x.dtype)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
  """`[B, k, ...]`, the tokens of `x [B, T, ...]` at `index [B, k]`: row by row, so that nothing travels on a mesh."""
  return jax.vmap(lambda row, at: row[at])(x, index)


def _put(x: jax.Array, index: jax.Array, new: jax.Array) -> jax.Array:
  """`x [B, T, ...]` with `new [B, k, ...]` at `index [B, k]`, whose rows are ascending."""
  put = lambda row, at, of: row.at[at].set(of, indices_are_sorted=True, unique_indices=True)  # noqa: E731
  return jax.vmap(put)(x, index, new)


def _pairs_at(pairs: jax.Array, index: jax.Array) -> jax.Array:
  """`[B, h, k, k]` of the queries and keys at `index [B, k]`, from `[S, h, T, T]`, of which each serves B / S rows."""
  each = index.reshape(len(pairs), -1, index.shape[1])  # [S, B / S, k]
  found = jax.vmap(jax.vmap(lambda of, at: of[:, at[:, None], at], (None, 0)))(pairs, each)
  return found.reshape(len(index), *found.shape[2:])


def _queries_at(mask: jax.Array, index: jax.Array) -> jax.Array:
  """`[B, 1, k, M]`, the rows of a mask `[B, 1, T, M]` for the queries at `index [B, k]`."""
  return jax.vmap(lambda of, at: of[:, at])(mask, index)
