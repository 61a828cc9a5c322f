"""How many parameters a model has, without allocating any."""

import dataclasses
import math

from flax import nnx

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
  params = nnx.state(nnx.eval_shape(lambda: config.make(nnx.Rngs(0))), nnx.Param)
  total = experts = activated = 0
  for (stack, *_), variable in nnx.to_flat_state(params):
    size, share = math.prod(variable.shape), 1.0
    if "expert" in variable.get_metadata().get("axes", ()):
      experts += size
      share = experts_per_token / config.stacks[str(stack)].moe.num_experts
    total += size
    activated += size * share
  return ParameterCounts(total, experts, round(activated))
