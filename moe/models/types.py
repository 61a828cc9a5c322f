"""Inputs and outputs of models: batches, outputs, the state of decoding.

A batch is a dict of arrays. `targets`, `targets_positions`, `targets_segments` are int32 `[B, T]` and `loss_weights` is
float32 `[B, T]`; an encoder-decoder also has `inputs`, `inputs_positions` and `inputs_segments`, int32 `[B, M]`. Token
ids: 0 is padding and starts every decoder input, 1 ends a text. Segments: 0 is padding, 1, 2, ... are the examples
packed into the row, each with positions from 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe.models.block import Cache
from moe.routing import Policy, Routing

Batch = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
  """A model's output for a batch.

  Attributes:
    logits: float32 `[B, T, V]`, of each token of `targets` given those before it.
    auxiliary_losses: "encoder" (if there is one) and "decoder", float32 scalars, weighted: the stack's part of the sum
      or, if the model says so, the mean over MoE layers.
    metrics: "encoder" (if there is one) and "decoder", each the metrics of its MoE layers by name; the leading axis is
      the MoE layer, first layer first.
    routing: likewise, the `Routing` of its MoE layers; None for a dense stack.
    policy: likewise, the `Policy` of routers that learn by REINFORCE; None for all others.
    seen: likewise, what `Stack.learn` moves the routers' state by; {} for routers that have none to move.
  """

  logits: jax.Array
  auxiliary_losses: dict[str, jax.Array]
  metrics: dict[str, dict[str, jax.Array]]
  routing: dict[str, Routing | None]
  policy: dict[str, Policy | None]
  seen: dict[str, dict[str, jax.Array]]

  @property
  def auxiliary_loss(self) -> jax.Array:
    """Float32 scalar, of all stacks together."""
    return sum(self.auxiliary_losses.values(), start=jnp.float32(0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
  """The state of decoding after `position` tokens.

  Attributes:
    position: int32 scalar, the same for all sequences of the batch.
    caches: those of the decoder's units and their blocks, with a leading axis of repeats.
    memory_mask: bool `[B, 1, 1, M]`, the encoder's real tokens; None without an encoder.
    row_length: after how many tokens routers begin a new row.
  """

  position: jax.Array
  caches: list[list[Cache]]
  memory_mask: jax.Array | None
  row_length: int = dataclasses.field(metadata={"static": True})


def shift_right(tokens: jax.Array, segments: jax.Array) -> jax.Array:
  """The decoder's input: `tokens [B, T]` shifted by one in each segment, 0 at a segment's start and in padding."""
  before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
  same = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
  return jnp.where(same & (segments > 0), before, 0)
