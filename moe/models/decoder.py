"""The language model of Zhou et al. 2022 (section 4.1): a decoder with its own position biases in every layer."""

import dataclasses

import jax
from flax import nnx

from moe.models.decoder_stack import decode_step, read_targets, start_decoding
from moe.models.embedding import TokenEmbedding
from moe.models.model_config import ModelConfig, StackConfig
from moe.models.stack import Stack
from moe.models.types import Batch, DecodeState, ModelOutput
from moe.nn.streams import named_streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig, name="decoder"):
  """A language model whose only stack is `decoder`."""

  row_format = "targets"

  decoder: StackConfig

  def make(self, rngs: nnx.Rngs) -> "Decoder":
    return Decoder(self, rngs=rngs)

  def stack_lengths(self, inputs_length: int, targets_length: int) -> dict[str, int]:
    """Inputs and targets are one sequence."""
    return {"decoder": inputs_length + targets_length}


class Decoder(nnx.Module):
  """Predicts each token of `targets` from those before it."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    of = named_streams(rngs)
    self.embedding = TokenEmbedding(config, rngs=of("embedding"))
    self.decoder = Stack(config, config.decoder, causal=True, rngs=of("decoder"))

  def __call__(self, batch: Batch, *, training: bool, key: jax.Array | None = None) -> ModelOutput:
    """Logits of all targets by teacher forcing; arguments as in `EncoderDecoder`."""
    decoded = read_targets(self.decoder, self.embedding, batch, training=training, key=key)
    return ModelOutput(
      logits=self.embedding.logits(decoded.x),
      auxiliary_losses={"decoder": decoded.auxiliary_loss},
      metrics={"decoder": decoded.metrics},
      routing={"decoder": decoded.routing},
      policy={"decoder": decoded.policy},
      seen={"decoder": decoded.seen},
    )

  def start(self, batch: Batch, max_length: int, row_length: int) -> DecodeState:
    """Makes empty caches for `max_length` tokens.

    Args:
      batch: `prompt` int32 `[B, P]`; only its number of rows is used, as `moe.evaluation.decoding` feeds it.
      max_length: tokens, including the prompt.
      row_length: tokens of a row of training. Routers count their capacity for rows of this length, however much is
        written, and begin a new row after as many tokens.

    Raises:
      ValueError: the router is not causal.
    """
    return start_decoding(self.config, self.decoder, batch["prompt"].shape[0], max_length, row_length)

  def step(self, tokens: jax.Array, state: DecodeState) -> tuple[jax.Array, DecodeState]:
    """Logits float32 `[B, V]` of the next token, after `tokens` int32 `[B]` (0 at first): those of teacher forcing.

    At most `max_length` steps after `start`; a further one would overwrite the last.
    """
    return decode_step(self.decoder, self.embedding, tokens, state)
