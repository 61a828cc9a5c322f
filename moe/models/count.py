"""How many parameters a model has, without allocating any."""

import dataclasses
import math

import jax
from flax import nnx

from moe.models.make import make_model
from moe.models.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
  """Numbers of scalars.

  Attributes:
    total: all parameters.
    experts: those of all experts, counted in `total`.
    activated: those that one token uses on average: all but the experts', and its share of them.
  """

  total: int
  experts: int
  activated: int


def count_parameters(config: ModelConfig, experts_per_token: float) -> ParameterCounts:
  """Counts the parameters of the model that `config` describes.

  Args:
    config: the model's.
    experts_per_token: on average: k of token choice, the capacity factor of expert choice. Unused in a dense model.
  """
  model = nnx.eval_shape(lambda: make_model(config, nnx.Rngs(0)))
  total = experts = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param)):
    size = math.prod(leaf.shape)
    total += size
    experts += size if "experts" in (getattr(entry, "key", None) for entry in path) else 0
  share = experts_per_token / config.num_experts if config.num_experts else 0
  return ParameterCounts(total, experts, total - experts + round(experts * share))
