"""How many parameters a model has, without allocating any."""

import dataclasses
import math

from flax import nnx

from moe.models.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
  """Parameter counts, in scalars.

  Attributes:
    total: all parameters.
    experts: those of all experts, included in `total`.
    activated: those that one token uses on average: all except the experts', plus its share of these.
  """

  total: int
  experts: int
  activated: int


def count_parameters(config: ModelConfig, experts_per_token: float) -> ParameterCounts:
  """Counts the parameters of the model that `config` describes.

  Args:
    config: of the model.
    experts_per_token: average: k for token choice, the capacity factor for expert choice. Unused for a dense model.
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
