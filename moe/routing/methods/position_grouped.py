"""Expert choice among the tokens at the same position of different sequences: blind to a sequence's own future.

A group holds one token of every sequence, so what a token competes with says nothing about the tokens after it, as long
as no other sequence of the batch holds the same text. Decoding a batch is the same rule: one step is one group.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe.config import require
from moe.routing.capacity import expert_choice_capacity, share_of_real_tokens
from moe.routing.expert_choice_options import GroupBudgetOptions
from moe.routing.groups import Groups
from moe.routing.methods.expert_choice import ExpertChoice, expert_choice
from moe.routing.router import Site, register
from moe.routing.types import RouterInput, RouterOutput, SlotRouting


def choice_of_few(scores: jax.Array, mask: jax.Array, k: int, taken: jax.Array) -> SlotRouting:
  """Expert choice with k slots, `[E, k]`, of which only the first `taken` are filled.

  Args:
    scores: float32 `[n, E]`.
    mask: bool `[n]`, False for padding.
    k: slots of each expert.
    taken: int32 scalar, tokens that each expert takes.
  """
  routing = expert_choice(scores, mask, k)
  filled = jnp.arange(k) < taken
  return SlotRouting(jnp.where(filled, routing.token, scores.shape[0]), jnp.where(filled, routing.weight, 0.0))


@dataclasses.dataclass(frozen=True)
class PositionGroupedOptions(GroupBudgetOptions):
  """Options of position-grouped expert choice: those of every form of expert choice."""


@register("position_grouped")
class PositionGrouped(ExpertChoice):
  """Each expert takes c / E of the real tokens at every position, rounded half up.

  Where sequences have ended, the budget shrinks with the number that go on: for fewer than E / 2c of them it rounds to
  nothing, and those tokens pass the layer by. A sequence's outputs depend on its company, in decoding too: the same
  sequences decoded together are routed as in teacher forcing.
  """

  Options = PositionGroupedOptions
  paper = "Zhou et al. 2022, arXiv 2202.09368, section 6; Krajewski et al. 2024, arXiv 2402.07871"

  @classmethod
  def is_causal(cls, options: GroupBudgetOptions, *, training: bool) -> bool:
    return True

  @classmethod
  def is_batch_independent(cls, options: GroupBudgetOptions, length: int, *, training: bool) -> bool:
    return False

  @classmethod
  def causal_twin(cls, options: GroupBudgetOptions) -> None:
    """None: it is causal itself."""

  @classmethod
  def groups(cls, options: GroupBudgetOptions, batch: int, length: int) -> Groups:
    return Groups(batch, by_position=True)

  @classmethod
  def check(cls, options: GroupBudgetOptions, site: Site, batch: int, length: int) -> None:
    options.check_experts(site.num_experts)
    for training in (True, False):
      factor = options.factor(training)
      require(
        batch * factor >= site.num_experts,
        "capacity_factor",
        factor,
        f"gives each of {site.num_experts} experts less than one of the {batch} tokens at a position; needs at least "
        f"{site.num_experts / factor:g} sequences in a batch, or a capacity factor of {site.num_experts / batch:g}",
      )

  def choose(self, scores: jax.Array, mask: jax.Array, *, training: bool) -> SlotRouting:
    factor = self.options.factor(training)
    k = expert_choice_capacity(len(mask), self.num_experts, factor)
    return choice_of_few(scores, mask, k, share_of_real_tokens(mask.sum(), self.num_experts, factor))

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """Nothing is remembered."""
    return {}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """As the base class says, for the company that is decoded together."""
    return self(inputs, training=False), state
