"""Expert choice with at most b experts per token. Zhou et al. 2022, section 3.3.

The paper solves an entropy-regularised program by Dykstra's algorithm and rounds the solution. At its settings that is
far from converged, and the cap is soft (up to 29% of the tokens exceed it, measured). Hence two more solvers: the dual
of the same program, within a percent in a fifth of the iterations, and one that never exceeds the cap.
"""

import dataclasses
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.methods.expert_choice import ExpertChoice, ExpertChoiceConfig
from moe.routing.methods.prefix_rank import PrefixRankConfig
from moe.routing.router import RouterConfig, Site
from moe.routing.solvers.capped_choice import deferred_acceptance, dykstra_plan, top_tokens, two_block_plan
from moe.routing.types import SlotRouting

_ITERATIONS = {"dykstra": 100, "dual": 20, "hard": 100}


@dataclasses.dataclass(frozen=True)
class CappedExpertChoiceConfig(ExpertChoiceConfig, name="capped_expert_choice"):
  """Expert choice with a cap on the experts per token; the other fields are those of expert choice.

  Attributes:
    cap: b, most experts per token; at least the capacity factor. If they are equal, every token gets exactly b experts
      and the solver only chooses which.
    solver: "dual" is block coordinate ascent in the program's dual; "dykstra" is the paper's; "hard" lets tokens refuse
      experts, never exceeds the cap and may leave slots empty.
    entropy: weight of the entropy, in units of the scores; 0.001 in the paper. Unused by "hard".
    iterations: of the solver; 0 for its default: 100 for "dykstra" as published, 20 for "dual", 100 for "hard".
  """

  paper = "Zhou et al. 2022, section 3.3"

  cap: int = 3
  solver: Literal["dual", "dykstra", "hard"] = "dual"
  entropy: float = 0.001
  iterations: int = 0

  def __post_init__(self):
    super().__post_init__()
    for training in (True, False):
      factor = self.factor(training)
      require(
        self.cap >= factor, "cap", self.cap, f"expected at least the capacity factor {factor:g}, or slots stay empty"
      )
    require(self.entropy > 0, "entropy", self.entropy, "expected more than 0")
    require(self.iterations >= 0, "iterations", self.iterations, "expected at least 0, and 0 means the solver's own")

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    require(self.cap <= site.num_experts, "cap", self.cap, f"expected at most the {site.num_experts} experts there are")

  def make(self, site: Site, rngs: nnx.Rngs) -> "CappedExpertChoice":
    return CappedExpertChoice(self, site, rngs=rngs)

  def causal_twin(self) -> RouterConfig | None:
    """That of expert choice, with the cap."""
    twin = super().causal_twin()
    return twin and dataclasses.replace(cast(PrefixRankConfig, twin), cap=self.cap)


class CappedExpertChoice(ExpertChoice):
  """Expert choice under a cap. The weights are the scores of the chosen tokens; the solver has no gradient."""

  config: CappedExpertChoiceConfig

  def choose(self, scores: jax.Array, mask: jax.Array, *, training: bool) -> SlotRouting:
    n, (k, taken) = len(mask), self._budget(mask, training=training)
    token = capped_choice(jax.lax.stop_gradient(scores), mask, k, taken, self.config)
    weight = scores.at[token, jnp.arange(self.num_experts)[:, None]].get(mode="fill", fill_value=0.0)
    return SlotRouting(token, jnp.where(token < n, weight, 0.0))


def capped_choice(
  scores: jax.Array, mask: jax.Array, k: int, taken: jax.Array | int, config: CappedExpertChoiceConfig
) -> jax.Array:
  """int32 `[E, k]`, the tokens of each expert in one group; n in empty slots.

  Args:
    scores: float32 `[n, E]`.
    mask: bool `[n]`, False for padding.
    k: slots per expert.
    taken: int32 scalar, tokens per expert, at most k.
    config: cap, solver and its settings.
  """
  iterations = config.iterations or _ITERATIONS[config.solver]
  if config.solver == "hard":
    return deferred_acceptance(scores, mask, k, config.cap, iterations, taken)
  plan = {"dual": two_block_plan, "dykstra": dykstra_plan}[config.solver]
  return top_tokens(plan(scores, mask, taken, config.cap, config.entropy, iterations), k, taken)
