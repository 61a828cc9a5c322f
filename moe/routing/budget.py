"""The base configs of expert choice and its relatives: experts with a budget of tokens."""

import dataclasses
from typing import Literal

from moe.config import require
from moe.routing.capacity import CapacityConfig, Counted
from moe.routing.router import Site


@dataclasses.dataclass(frozen=True)
class ExpertBudgetConfig(CapacityConfig):
  """Base config of routers whose experts take c * n / E of n tokens, exactly or on average.

  Attributes:
    capacity_factor: c, experts per token on average; 2 is the work of top-2 token choice.
    renormalize: whether the weights of a token's experts sum to 1; in Zhou et al. they do not.
    z_loss: weight of the router z-loss; Zhou et al. have no auxiliary loss.
  """

  capacity_factor: float = 2.0
  renormalize: bool = False
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.z_loss >= 0, "z_loss", self.z_loss, "expected at least 0")

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    for training in (True, False):
      factor, experts = self.factor(training), site.num_experts
      require(
        factor <= experts, self.factor_field(training), factor, f"expected at most the {experts} experts there are"
      )


@dataclasses.dataclass(frozen=True)
class GroupBudgetConfig(ExpertBudgetConfig):
  """Base config of routers whose experts choose tokens within a group.

  Attributes:
    softmax: what the scores, and so the gates, sum to 1 over: "experts" as in Zhou et al.; over "tokens", gates are
      about 1 / n and the layer's output needs a norm.
    noise: in training the logits get Gaussian noise of standard deviation noise / E, as in V-MoE.
    counted: the tokens of a group that the budget is a share of: "real", or "all", padding included, with which a group
      that is mostly padding gives its few tokens many experts each.
  """

  softmax: Literal["experts", "tokens"] = "experts"
  counted: Counted = "real"
  noise: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.noise >= 0, "noise", self.noise, "expected at least 0")
