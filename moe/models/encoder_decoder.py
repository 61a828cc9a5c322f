"""T5 1.1 (Raffel et al. 2020; Shazeer 2020) with MoE layers in either stack."""

import dataclasses

import jax
from flax import nnx

from moe.models.block import Context
from moe.models.decoder_stack import decode_step, read_targets, start_decoding
from moe.models.embedding import TokenEmbedding
from moe.models.model_config import ModelConfig, StackConfig
from moe.models.stack import Stack, StackOutput
from moe.models.types import Batch, DecodeState, ModelOutput
from moe.nn.attention import segment_mask
from moe.nn.dropout import split_key
from moe.nn.streams import named_streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(ModelConfig, name="encoder_decoder"):
  """T5 1.1 with the stacks `encoder` and `decoder`."""

  row_format = "inputs_and_targets"

  encoder: StackConfig
  decoder: StackConfig

  def make(self, rngs: nnx.Rngs) -> "EncoderDecoder":
    return EncoderDecoder(self, rngs=rngs)

  def stack_lengths(self, inputs_length: int, targets_length: int) -> dict[str, int]:
    return {"encoder": inputs_length, "decoder": targets_length}


class EncoderDecoder(nnx.Module):
  """Reads `inputs` with a bidirectional encoder, predicts `targets` with a causal decoder that attends to it."""

  def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    of = named_streams(rngs)
    self.embedding = TokenEmbedding(config, rngs=of("embedding"))
    self.encoder = Stack(config, config.encoder, causal=False, rngs=of("encoder"))
    self.decoder = Stack(config, config.decoder, causal=True, cross=True, rngs=of("decoder"))

  def __call__(self, batch: Batch, *, training: bool, key: jax.Array | None = None) -> ModelOutput:
    """Logits of all targets by teacher forcing.

    Args:
      batch: see `moe.models.types`.
      training: whether routers draw random numbers and use their training capacity.
      key: feeds dropout and random routers; None turns dropout off.
    """
    encoder_key, decoder_key = split_key(key, 2)
    encoded = self.encode(batch, training=training, key=encoder_key)
    memory_mask = segment_mask(batch["targets_segments"], batch["inputs_segments"])
    decoded = read_targets(
      self.decoder,
      self.embedding,
      batch,
      memory=encoded.x,
      memory_mask=memory_mask,
      training=training,
      key=decoder_key,
    )
    return ModelOutput(
      logits=self.embedding.logits(decoded.x),
      auxiliary_losses={"encoder": encoded.auxiliary_loss, "decoder": decoded.auxiliary_loss},
      metrics={"encoder": encoded.metrics, "decoder": decoded.metrics},
      routing={"encoder": encoded.routing, "decoder": decoded.routing},
      policy={"encoder": encoded.policy, "decoder": decoded.policy},
      seen={"encoder": encoded.seen, "decoder": decoded.seen},
    )

  @jax.named_scope("encoder")
  def encode(self, batch: Batch, *, training: bool = False, key: jax.Array | None = None) -> StackOutput:
    """The encoder's output `[B, M, d]`."""
    segments = batch["inputs_segments"]
    context = Context(
      mask=segment_mask(segments, segments),
      ids=batch["inputs"],
      positions=batch["inputs_positions"],
      segments=segments,
    )
    return self.encoder(self.embedding(batch["inputs"]), context, training=training, key=key)

  def start(self, batch: Batch, max_length: int, row_length: int) -> DecodeState:
    """Runs the encoder and makes empty caches for `max_length` target tokens.

    Args:
      batch: `inputs`, `inputs_positions`, `inputs_segments`; one example per row, not packed: only segment 1 is read.
        Each row is encoded on its own.
      max_length: target tokens.
      row_length: of the targets in training. Routers count their capacity for rows of this length, however much is
        written, and begin a new row after as many tokens.

    Raises:
      ValueError: the decoder's router is not causal.
    """
    memory_mask = (batch["inputs_segments"] == 1)[:, None, None, :]
    memory, size = self._encode_each(batch), batch["inputs"].shape[0]
    return start_decoding(self.config, self.decoder, size, max_length, row_length, memory, memory_mask)

  def _encode_each(self, batch: Batch) -> jax.Array:
    """`encode` of every row as a batch of its own: no router sees two texts together."""
    graph, variables = nnx.split(self)
    rows = {name: array[:, None] for name, array in batch.items() if name.startswith("inputs")}
    return jax.lax.map(lambda row: nnx.merge(graph, variables).encode(row).x, rows)[:, 0]

  def step(self, tokens: jax.Array, state: DecodeState) -> tuple[jax.Array, DecodeState]:
    """Logits float32 `[B, V]` of the next token, after `tokens` int32 `[B]` (0 at first): those of teacher forcing.

    At most `max_length` steps after `start`; a further one would overwrite the last.
    """
    return decode_step(self.decoder, self.embedding, tokens, state)
