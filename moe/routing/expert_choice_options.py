"""What every form of expert choice has: a budget of tokens for each expert."""

import dataclasses
from typing import Literal

from moe.config import require
from moe.routing.capacity import CapacityOptions


@dataclasses.dataclass(frozen=True)
class ExpertBudgetOptions(CapacityOptions):
  """Options of routers whose experts take c * n / E of n tokens, exactly or on average.

  Attributes:
    capacity_factor: c, experts per token on average; 2 compares with top-2 token choice.
    eval_capacity_factor: the one of evaluation; None for the same.
    renormalize: whether the weights of each token's experts sum to 1. Zhou et al. do not.
    z_loss: weight of the router z-loss. Zhou et al. have no auxiliary loss.
  """

  capacity_factor: float = 2.0
  renormalize: bool = False
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.z_loss >= 0, "z_loss", self.z_loss, "expected a weight of at least 0")

  def check_experts(self, num_experts: int) -> None:
    """Raises `ConfigError` where a token would need more experts than there are."""
    for training in (True, False):
      factor = self.factor(training)
      require(factor <= num_experts, "capacity_factor", factor, f"expected at most the {num_experts} experts there are")


@dataclasses.dataclass(frozen=True)
class GroupBudgetOptions(ExpertBudgetOptions):
  """Options of routers whose experts choose within a group.

  Attributes:
    softmax: what scores, and so the gates, sum to 1 over. "experts" is Zhou et al.'s; over "tokens" each expert
      spreads a weight of 1, so that gates are about 1 / n and want a norm after the layer.
  """

  softmax: Literal["experts", "tokens"] = "experts"
