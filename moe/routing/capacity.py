"""How many tokens an expert takes.

The capacity factor has one definition for both families, so the same number means the same work: with factor c, each of
E experts has room for c * n / E of its group's n tokens, that is, c experts per token on average. Expert choice fills
that room exactly; token choice with k experts per token fills at most min(c, k) / c of it. (Code that defines the room
as c * k * n / E calls "1.25" what is 2.5 here for k = 2.)
"""

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp

from moe.config import require
from moe.routing.router import RouterConfig

Counted = Literal["real", "all"]


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
    factor = self.eval_capacity_factor
    fits = self.capacity_factor is not None or factor is None
    require(fits, "eval_capacity_factor", factor, "expected None, since capacity_factor = None means dropless")

  def factor(self, training: bool) -> float | None:
    """The capacity factor in training or in evaluation."""
    return getattr(self, self.factor_field(training))

  def factor_field(self, training: bool) -> str:
    """The name of the field that holds it."""
    return "capacity_factor" if training or self.eval_capacity_factor is None else "eval_capacity_factor"


def expert_choice_capacity(
  group: int, num_experts: int, capacity_factor: float, *, training: bool = True, field: str = "capacity_factor"
) -> int:
  """Tokens per expert: k = n * c / E (Zhou et al. 2022, eq. 1), rounded half up; in evaluation from 1 to n.

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c, experts per token on average.
    training: whether n is the config's; evaluation takes whatever there is, down to one token.
    field: the name of the capacity factor in an error.

  Raises:
    ConfigError: in training, k would be less than 1 or more than n.
  """
  if not training:
    return token_choice_capacity(group, num_experts, capacity_factor)
  k = round_half_up(group, num_experts, capacity_factor)
  least = num_experts / group
  wanted = f"expected from {least:g} to {num_experts}: each expert would take {k} of a group's {group} tokens"
  require(1 <= k <= group, field, capacity_factor, wanted)
  return k


def share_of_real_tokens(real: jax.Array, num_experts: int, capacity_factor: float) -> jax.Array:
  """int32, c / E of a number of tokens known only at run time, rounded half up; 0 for few tokens.

  Args:
    real: int32, tokens that are not padding.
    num_experts: E.
    capacity_factor: c <= E. If c / E has a denominator of 2^15 or more, the nearest fraction with a smaller one is
      used, so that all products fit into int32.
  """
  share = (Fraction(str(capacity_factor)) / num_experts).limit_denominator(2**15 - 1)
  p, q = share.numerator, share.denominator
  return real // q * p + (2 * p * (real % q) + q) // (2 * q)


def expert_budget(
  mask: jax.Array, num_experts: int, capacity_factor: float, counted: Counted, *, training: bool
) -> tuple[int, jax.Array | int]:
  """How many slots an expert of expert choice has in a group, and how many of them it fills.

  Shapes are static, so slots are counted by the group's n tokens. The budget is c / E of those that count, rounded half
  up: with few real tokens 0 in training, and their tokens skip the layer; in evaluation at least 1.

  Args:
    mask: bool `[..., n]`, False for padding.
    num_experts: E.
    capacity_factor: c.
    counted: the tokens that the budget is a share of, "real" or "all".
    training: as in `expert_choice_capacity`.

  Returns:
    k, and an int32 `[...]` that is at most k, or k itself.
  """
  k = expert_choice_capacity(mask.shape[-1], num_experts, capacity_factor, training=training)
  if counted == "all":
    return k, k
  share = share_of_real_tokens(mask.sum(-1, dtype=jnp.int32), num_experts, capacity_factor)
  return k, jnp.clip(share, 0 if training else 1, k)


def token_choice_capacity(
  group: int, num_experts: int | Fraction, capacity_factor: float, *, least: int = 1, multiple: int = 1
) -> int:
  """Slots per expert: C = n * c / E rounded half up, at least 1 and at most n (an expert sees a token once).

  Args:
    group: n, tokens of the routing group, padding included (shapes are static).
    num_experts: E.
    capacity_factor: c; not multiplied by the experts per token, so 2 is the same work as in expert choice.
    least: C is at least this; still at most n.
    multiple: more than 1 rounds up to a multiple of it instead; still at most n.
  """
  if multiple > 1:
    slots = multiple * math.ceil(Fraction(str(capacity_factor)) * group / num_experts / multiple)
  else:
    slots = round_half_up(group, num_experts, capacity_factor)
  return min(max(slots, least), group)


def round_half_up(group: int, num_experts: int | Fraction, capacity_factor: float) -> int:
  """The number of slots, n * c / E; halves go up, as Python's round(), to even, would grow unevenly with the factor."""
  # The decimal as written, not its nearest float: 10 * 1.15 is meant as 11.5 but is 11.499... in binary.
  return math.floor(Fraction(str(capacity_factor)) * group / num_experts + Fraction(1, 2))
