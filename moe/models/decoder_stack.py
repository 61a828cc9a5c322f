"""The decoder's side of both architectures: reading targets all at once, or one token at a time."""

import dataclasses

import jax
import jax.numpy as jnp

from moe.models.block import Context
from moe.models.embedding import TokenEmbedding
from moe.models.model_config import ModelConfig
from moe.models.stack import Stack, StackOutput
from moe.models.types import Batch, DecodeState, shift_right
from moe.nn.attention import segment_mask


@jax.named_scope("decoder")
def read_targets(
  stack: Stack,
  embedding: TokenEmbedding,
  batch: Batch,
  *,
  memory: jax.Array | None = None,
  memory_mask: jax.Array | None = None,
  training: bool,
  key: jax.Array | None,
) -> StackOutput:
  """Teacher forcing: the decoder's output at each of `batch["targets"]`, before the logits."""
  segments = batch["targets_segments"]
  ids = shift_right(batch["targets"], segments)
  context = Context(
    mask=segment_mask(segments, segments, causal=True),
    ids=ids,
    positions=batch["targets_positions"],
    segments=segments,
    memory=memory,
    memory_mask=memory_mask,
  )
  return stack(embedding(ids), context, training=training, key=key)


def start_decoding(
  config: ModelConfig,
  stack: Stack,
  batch_size: int,
  max_length: int,
  row_length: int,
  memory: jax.Array | None = None,
  memory_mask: jax.Array | None = None,
) -> DecodeState:
  """Empty caches for `max_length` tokens, which routers see as rows of `row_length`.

  Raises:
    ValueError: the decoder's router is not causal.
  """
  if config.evaluates_on_future:
    name = config.decoder_router.name
    raise ValueError(
      f"decoder.moe.router.name = {name!r}: expected a causal router to decode step by step; this one is not causal and"
      " decides on a token by those after it"
    )
  caches = stack.init_cache(batch_size, max_length, row_length, memory)
  return DecodeState(jnp.int32(0), caches, memory_mask, row_length)


def decode_step(
  stack: Stack, embedding: TokenEmbedding, tokens: jax.Array, state: DecodeState
) -> tuple[jax.Array, DecodeState]:
  """Logits `[B, V]` of the token after `tokens [B]`."""
  ids = tokens[:, None]
  length = state.caches[0][0]["attention"]["keys"].shape[-2]
  context = Context(
    mask=jnp.arange(length) <= state.position,
    ids=ids,
    positions=jnp.full_like(ids, state.position % state.row_length),
    position=state.position,
    memory_mask=state.memory_mask,
    row_length=state.row_length,
  )
  x, caches = stack.step(embedding(ids), state.caches, context)
  return embedding.logits(x)[:, 0], dataclasses.replace(state, position=state.position + 1, caches=caches)
