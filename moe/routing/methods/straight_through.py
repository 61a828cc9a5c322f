"""Straight-through top-1: one expert with weight 1 and the gradient of its probability."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.losses import balance_loss
from moe.routing.router import Site
from moe.routing.sampling import best_expert, one_hot, sampled_expert, training_key
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.estimators import hard_forward
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter, require_room_for_all
from moe.routing.types import RouterInput


@dataclasses.dataclass(frozen=True)
class StraightThroughConfig(TokenwiseConfig, CapacityConfig, name="straight_through"):
  """Straight-through routing: a hard choice of one expert with the softmax's gradient.

  Attributes:
    sample: whether training draws the expert from the softmax; else it takes the most probable one.
    dense_backward: whether training evaluates every expert, all but one with weight 0, at the cost of all E. That is
      the estimator as published, whose gradient compares the experts; with only the chosen one, the gradient tells just
      whether more of that expert's output would help. The metrics of training then count all experts, which compute;
      those of validation, the one.
    balance_loss: weight of Switch's load balancing loss.
    balance_scope: whether the tokens of a "sequence" are balanced with each other, or those of the whole "batch".
  """

  paper = "Bengio, Léonard and Courville 2013, arXiv 1308.3432"

  sample: bool = True
  dense_backward: bool = False
  balance_loss: float = 0.01
  balance_scope: Literal["batch", "sequence"] = "sequence"

  def __post_init__(self):
    super().__post_init__()
    require(self.balance_loss >= 0, "balance_loss", self.balance_loss, "expected at least 0")

  def make(self, site: Site, rngs: nnx.Rngs) -> "StraightThrough":
    return StraightThrough(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    if self.dense_backward:
      require_room_for_all(self, site.num_experts, training=True)


class StraightThrough(TokenwiseRouter):
  """The straight-through estimator on softmax(x W). Evaluation takes the most probable expert, with weight 1."""

  config: StraightThroughConfig

  def __init__(self, config: StraightThroughConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """See the base class."""
    logits = router_logits(inputs.tokens, self.kernel[...])
    probs = jax.nn.softmax(logits)
    random = training and self.config.sample
    expert = sampled_expert(logits, training_key(self, inputs)) if random else best_expert(logits)
    hard = one_hot(expert, self.num_experts)
    everybody = training and self.config.dense_backward
    together = inputs.mask.size if self.config.balance_scope == "batch" else None
    balance = balance_loss(probs, expert[..., None], inputs.mask, together=together)
    return Selection(
      chosen=jnp.ones_like(hard) if everybody else hard,
      weight=hard_forward(hard.astype(jnp.float32), probs),
      probs=probs,
      losses={"balance": balance},
      auxiliary_loss=self.config.balance_loss * balance,
      most=None if everybody else 1,
    )
