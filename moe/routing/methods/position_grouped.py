"""Expert choice among tokens at the same position of different sequences, blind to a sequence's own future.

A group holds one token of every sequence, so a token's competitors say nothing about the tokens after it, as long as no
other sequence of the batch has the same text. Decoding a batch follows the same rule: one step is one group.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.budget import GroupBudgetConfig
from moe.routing.groups import Groups
from moe.routing.methods.expert_choice import ExpertChoice
from moe.routing.router import Site
from moe.routing.types import RouterInput, RouterOutput, SlotRouting


@dataclasses.dataclass(frozen=True)
class PositionGroupedConfig(GroupBudgetConfig, name="position_grouped"):
  """Position-grouped expert choice; its fields are those of every form of expert choice."""

  paper = "Zhou et al. 2022, arXiv 2202.09368, section 6; Krajewski et al. 2024, arXiv 2402.07871"

  def make(self, site: Site, rngs: nnx.Rngs) -> "PositionGrouped":
    return PositionGrouped(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return True

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return False

  def causal_twin(self) -> None:
    """None: it is causal itself."""

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return Groups(batch, by_position=True)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    for training in (True, False):
      factor = self.factor(training)
      require(
        batch * factor >= site.num_experts,
        self.factor_field(training),
        factor,
        f"expected at least {site.num_experts / factor:g} sequences in a batch, or a capacity factor of "
        f"{site.num_experts / batch:g}: each of {site.num_experts} experts gets less than one of {batch} tokens",
      )


class PositionGrouped(ExpertChoice):
  """Each expert takes c / E of the real tokens at every position, rounded half up.

  As sequences end, the budget shrinks with the number still running: for fewer than E / 2c it rounds to zero in
  training, and their tokens skip the layer; in evaluation each expert takes at least one. A sequence's outputs depend
  on the others in its batch, except in decoding, where each is alone: every expert then takes its token.
  """

  config: PositionGroupedConfig

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """Empty: nothing is remembered."""
    return {}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """See the base class; every token is a group of its own, whatever is decoded beside it."""
    alone = RouterInput(inputs.tokens.swapaxes(0, 1), inputs.mask.swapaxes(0, 1))  # [B, 1, ...]
    routing: Any = self(alone, training=False).routing  # [B, E, C] of one token each
    batch = len(routing.token)
    token = jnp.where(routing.token == 0, jnp.arange(batch)[:, None, None], batch)

    def one_group(array: jax.Array) -> jax.Array:
      return array.swapaxes(0, 1).reshape(1, self.num_experts, -1)

    return RouterOutput(SlotRouting(one_group(token), one_group(routing.weight)), {}, jnp.zeros(()), {}), state
