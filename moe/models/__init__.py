"""Models: blocks scanned into stacks, stacks combined into architectures, one per file and selected by name."""

import importlib
import pkgutil

from moe.models.count import ParameterCounts, count_parameters
from moe.models.model_config import ModelConfig, MoEConfig, StackConfig
from moe.models.types import Batch, DecodeState, ModelOutput, shift_right

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
  "Batch",
  "DecodeState",
  "MoEConfig",
  "ModelConfig",
  "ModelOutput",
  "ParameterCounts",
  "StackConfig",
  "count_parameters",
  "shift_right",
]
