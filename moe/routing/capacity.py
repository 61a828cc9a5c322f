"""How many tokens an expert takes: the only place where a capacity is computed, and rounded.

One definition of the capacity factor for both families, so that the same number means the same work: with capacity
factor c an expert of E has room for c * n / E of the n tokens of its group, which is c experts per token on average.
Expert choice fills that room exactly; token choice with k experts per token fills at most min(c, k) of it.
(Code that defines the room as c * k * n / E calls "1.25" what is 2.5 here for k = 2.)
"""

import dataclasses
import math
from fractions import Fraction

import jax

from moe.config import require


@dataclasses.dataclass(frozen=True)
class CapacityOptions:
  """The options that every router with slots shares.

  Attributes:
    capacity_factor: slots for each of n tokens, E * C / n; None for dropless, where the router can be.
    eval_capacity_factor: the one of evaluation and decoding; None for the same.
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
    """The capacity factor of this mode."""
    return self.capacity_factor if training or self.eval_capacity_factor is None else self.eval_capacity_factor


def expert_choice_capacity(group: int, num_experts: int, capacity_factor: float) -> int:
  """Tokens that every expert takes: k = n * c / E, Zhou et al. 2022, eq. 1, rounded half up.

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c, experts per token on average.

  Raises:
    ConfigError: k would be less than 1 or more than n.
  """
  k = _round_half_up(group, num_experts, capacity_factor)
  require(
    1 <= k <= group,
    "capacity_factor",
    capacity_factor,
    f"gives each of {num_experts} experts {k} of the {group} tokens of a group; from 1 to {group} are allowed, "
    f"so a capacity factor from {num_experts / group:g} to {num_experts}",
  )
  return k


def token_choice_capacity(group: int, num_experts: int, capacity_factor: float) -> int:
  """Slots of every expert: C = n * c / E rounded half up, at least 1, at most n (a token takes an expert once).

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c; not multiplied by the experts per token, so that 2 compares with expert choice's 2.
  """
  return min(max(_round_half_up(group, num_experts, capacity_factor), 1), group)


def capacity_with_slack(group: int, num_experts: int, capacity_factor: float, slack: float) -> int:
  """Slots for a load that is c * n / E only on average: `slack` standard deviations more, at least 1, at most n.

  The standard deviation is the square root of the mean, which that of independent choices does not exceed.

  Args:
    group: n, tokens of the routing group.
    num_experts: E.
    capacity_factor: c.
    slack: standard deviations.
  """
  mean = capacity_factor * group / num_experts
  return min(max(math.ceil(mean + slack * math.sqrt(mean)), 1), group)


def share_of_real_tokens(real: jax.Array, num_experts: int, capacity_factor: float) -> jax.Array:
  """int32, c / E of a number of tokens that is known only when the program runs, rounded half up; 0 for few tokens.

  Args:
    real: int32, tokens that are not padding.
    num_experts: E.
    capacity_factor: c <= E. Where c / E has a denominator of 2^15 or more, the nearest fraction with a smaller one is
      taken, so that all products fit into int32.
  """
  share = (Fraction(str(capacity_factor)) / num_experts).limit_denominator(2**15 - 1)
  p, q = share.numerator, share.denominator
  return real // q * p + (2 * p * (real % q) + q) // (2 * q)


def require_room_for_all(options: CapacityOptions, num_experts: int, *, training: bool) -> None:
  """For routers that send every token to every expert.

  Raises:
    ConfigError: there are slots in this mode, and fewer than that.
  """
  factor = options.factor(training)
  separate = not training and options.eval_capacity_factor is not None
  require(
    factor is None or factor >= num_experts,
    "eval_capacity_factor" if separate else "capacity_factor",
    factor,
    f"every token goes to all {num_experts} experts: expected at least {num_experts}, or None (dropless)",
  )


def actual_capacity_factor(capacity: int, group: int, num_experts: int) -> float:
  """The capacity factor that the rounded `capacity` amounts to: E * C / n."""
  return capacity * num_experts / group


def _round_half_up(group: int, num_experts: int, capacity_factor: float) -> int:
  # The decimal that was written, not its nearest float: 10 * 1.15 is 11.5 to its author and 11.499... in binary.
  # Python's round() would take halves to the even neighbour, so that capacity would not grow with the factor evenly.
  return math.floor(Fraction(str(capacity_factor)) * group / num_experts + Fraction(1, 2))
