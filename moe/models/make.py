"""From a config to its model."""

from flax import nnx

from moe.models.decoder import Decoder
from moe.models.encoder_decoder import EncoderDecoder
from moe.models.model_config import ModelConfig


def make_model(config: ModelConfig, rngs: nnx.Rngs) -> EncoderDecoder | Decoder:
  """The model that `config` describes, initialised from the stream `params` of `rngs`.

  Under `nnx.eval_shape` nothing is allocated.
  """
  return (Decoder if config.architecture == "decoder" else EncoderDecoder)(config, rngs=rngs)
