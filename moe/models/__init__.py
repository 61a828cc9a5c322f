"""Models: one block (`block`), scanned into stacks (`stack`), made into T5 (`encoder_decoder`) or a LM (`decoder`)."""

from moe.models.count import ParameterCounts, count_parameters
from moe.models.make import make_model
from moe.models.model_config import ModelConfig
from moe.models.types import Batch, DecodeState, ModelOutput, shift_right

__all__ = [
  "Batch",
  "DecodeState",
  "ModelConfig",
  "ModelOutput",
  "ParameterCounts",
  "count_parameters",
  "make_model",
  "shift_right",
]
