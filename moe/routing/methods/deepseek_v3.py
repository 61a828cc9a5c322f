"""DeepSeek-V3's router: loss-free balance, experts of the best groups only, and a sequence-wise loss that is small.

DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.methods.loss_free import LossFree, LossFreeConfig
from moe.routing.router import Site
from moe.routing.solvers.highest import are_highest, highest
from moe.routing.top_k import Decision, Logits

_BEST = 2  # experts of a group whose scores it is judged by


def within_best_groups(ranking: jax.Array, groups: int, chosen: int) -> jax.Array:
  """The ranking `[..., E]` with -inf for experts outside of the groups whose two best experts have the highest sums.

  Args:
    ranking: float32 `[..., E]`; a group is E / groups consecutive experts, such as those of one node.
    groups: N.
    chosen: M <= N, groups of a token; ties go to the lower index.
  """
  grouped = ranking.reshape(*ranking.shape[:-1], groups, -1)  # [..., N, E / N]
  score = highest(grouped, min(_BEST, grouped.shape[-1]))[0].sum(-1)  # [..., N]
  return jnp.where(are_highest(score, chosen)[..., None], grouped, -jnp.inf).reshape(ranking.shape)


@dataclasses.dataclass(frozen=True)
class DeepSeekV3Config(LossFreeConfig, name="deepseek_v3"):
  """Sigmoid scores, top-k by score plus bias among the experts of the best groups, gates renormalised; dropless.

  V3 itself has 256 experts in 8 groups of which a token has 4, `top_k = 8`, a shared expert (`moe.shared_experts = 1`)
  and multiplies the gates by 2.5 (`moe.gate_scale = 2.5`). Its groups lie on nodes, so that a token is sent to at most
  `chosen_groups` of them. The balance loss counts the highest scores, without the biases and the limit to groups.

  Attributes:
    expert_groups: N, which divides the number of experts.
    chosen_groups: M, from which a token has all its experts.
  """

  paper = "DeepSeek-AI 2024 (DeepSeek-V3), arXiv 2412.19437"

  renormalize: bool = True
  balance_loss: float = 1e-4
  balance_scope: Literal["group", "batch", "sequence"] = "sequence"
  expert_groups: int = 4
  chosen_groups: int = 2

  def __post_init__(self):
    super().__post_init__()
    require(self.expert_groups >= 1, "expert_groups", self.expert_groups, "expected at least 1")
    wanted = f"expected at least 1 and at most expert_groups = {self.expert_groups}"
    require(1 <= self.chosen_groups <= self.expert_groups, "chosen_groups", self.chosen_groups, wanted)

  @property
  def growth(self) -> Literal["unchosen"] | None:
    # More experts would divide into other groups, and old ones would compete with other experts than before.
    return super().growth if self.chosen_groups == self.expert_groups else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "DeepSeekV3":
    return DeepSeekV3(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    experts, groups = site.num_experts, self.expert_groups
    require(experts % groups == 0, "expert_groups", groups, f"expected a divisor of the {experts} experts")
    room = self.chosen_groups * experts // groups
    wanted = f"expected at most the {room} experts of chosen_groups = {self.chosen_groups}"
    require(self.top_k <= room, "top_k", self.top_k, wanted)


class DeepSeekV3(LossFree):
  """Loss-free balancing among the experts of a token's best groups."""

  config: DeepSeekV3Config

  def ranking(self, logits: Logits, scores: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    biased = super().ranking(logits, scores, mask, training=training)
    return within_best_groups(biased, self.config.expert_groups, self.config.chosen_groups)

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    # Equation 18 counts a token's highest scores, whatever its groups and the biases leave of them for the choice.
    counted = highest(jax.lax.stop_gradient(decision.scores), self.config.top_k)[1]
    return super().losses(dataclasses.replace(decision, choices=counted), training=training)
