"""How many tokens an expert takes: the only file that computes and rounds capacities.

The capacity factor has one definition for both families, so the same number means the same work: with factor c, each of
E experts has room for c * n / E of its group's n tokens, that is, c experts per token on average. Expert choice fills
that room exactly; token choice with k experts per token fills at most min(c, k) / c of it. (Code that defines the room
as c * k * n / E calls "1.25" what is 2.5 here for k = 2.)
"""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

from moe.config import require
from moe.routing.router import RouterConfig, Site


@dataclasses.dataclass(frozen=True)
class CapacityConfig(RouterConfig):
  """Base config of routers whose experts have slots.

  Attributes:
    capacity_factor: slots per token, E * C / n; None for dropless, if the router allows it.
    eval_capacity_factor: the one for evaluation and decoding; None for the same.
  """

  capacity_factor: float | None = None
  eval_capacity_factor: float | None = None

  def __post_init__(self):
    for name in ("capacity_factor", "eval_capacity_factor"):
      factor = getattr(self, name)
      require(factor is None or factor > 0, name, factor, "expected more than 0, or None")
    require(
      self.capacity_factor is not None or self.eval_capacity_factor is None,
      "eval_capacity_factor",
      self.eval_capacity_factor,
      "expected None, since capacity_factor = None means dropless",
    )

  def factor(self, training: bool) -> float | None:
    """The capacity factor in training or in evaluation."""
    return self.capacity_factor if training or self.eval_capacity_factor is None else self.eval_capacity_factor


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
      require(factor <= experts, "capacity_factor", factor, f"expected at most the {experts} experts there are")


@dataclasses.dataclass(frozen=True)
class GroupBudgetConfig(ExpertBudgetConfig):
  """Base config of routers whose experts choose tokens within a group.

  Attributes:
    softmax: what the scores, and so the gates, sum to 1 over: "experts" as in Zhou et al.; over "tokens", gates are
      about 1 / n and the layer's output needs a norm.
  """

  softmax: Literal["experts", "tokens"] = "experts"


def expert_choice_capacity(group: int, num_experts: int, capacity_factor: float, *, training: bool = True) -> int:
  """Tokens per expert: k = n * c / E (Zhou et al. 2022, eq. 1), rounded half up; in evaluation from 1 to n.

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c, experts per token on average.
    training: whether n is the config's; evaluation takes whatever there is, down to one token.

  Raises:
    ConfigError: in training, k would be less than 1 or more than n.
  """
  if not training:
    return token_choice_capacity(group, num_experts, capacity_factor)
  k = _round_half_up(group, num_experts, capacity_factor)
  require(
    1 <= k <= group,
    "capacity_factor",
    capacity_factor,
    f"gives each of {num_experts} experts {k} of the {group} tokens of a group; expected from 1 to {group}, "
    f"so a capacity factor from {num_experts / group:g} to {num_experts}",
  )
  return k


def token_choice_capacity(group: int, num_experts: int, capacity_factor: float) -> int:
  """Slots per expert: C = n * c / E rounded half up, at least 1 and at most n (an expert sees a token once).

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c; not multiplied by the experts per token, so 2 is the same work as in expert choice.
  """
  return min(max(_round_half_up(group, num_experts, capacity_factor), 1), group)


def actual_capacity_factor(capacity: int, group: int, num_experts: int) -> float:
  """The capacity factor that the rounded `capacity` amounts to: E * C / n."""
  return capacity * num_experts / group


def _round_half_up(group: int, num_experts: int, capacity_factor: float) -> int:
  # The decimal as written, not its nearest float: 10 * 1.15 is meant as 11.5 but is 11.499... in binary. Python's
  # round() takes halves to the even neighbour, so the capacity would grow unevenly with the factor.
  return math.floor(Fraction(str(capacity_factor)) * group / num_experts + Fraction(1, 2))
