"""Straight-through top-1: one expert with weight 1, its gradient that of its probability."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityOptions, require_room_for_all
from moe.routing.losses import balance_loss
from moe.routing.router import Site, register
from moe.routing.sampling import best_expert, one_hot, sampled_expert, training_key
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.estimators import hard_forward
from moe.routing.tokenwise import Selection, TokenwiseRouter
from moe.routing.types import RouterInput


@dataclasses.dataclass(frozen=True)
class StraightThroughOptions(CapacityOptions):
  """Options of straight-through routing.

  Attributes:
    sample: whether training draws the expert from the softmax; else it takes the most probable one.
    dense_backward: whether training evaluates every expert, all but one with weight 0, at the cost of all E. That is
      the estimator as published, whose gradient compares the experts; with the chosen one alone the gradient knows
      only whether more of that expert's output would help.
    balance_loss: weight of Switch's load-balancing loss.
  """

  sample: bool = True
  dense_backward: bool = False
  balance_loss: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    require(self.balance_loss >= 0, "balance_loss", self.balance_loss, "expected at least 0")


@register("straight_through")
class StraightThrough(TokenwiseRouter):
  """The straight-through estimator on softmax(x W). Evaluation takes the most probable expert, with weight 1."""

  Options = StraightThroughOptions
  paper = "Bengio, Léonard and Courville 2013, arXiv 1308.3432"
  options: StraightThroughOptions

  def __init__(self, options: StraightThroughOptions, site: Site, *, rngs: nnx.Rngs):
    self.options, self.num_experts = options, site.num_experts
    self.kernel = router_kernel(site, rngs)

  @classmethod
  def check(cls, options: StraightThroughOptions, site: Site, batch: int, length: int) -> None:
    super().check(options, site, batch, length)
    if options.dense_backward:
      require_room_for_all(options, site.num_experts, training=True)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """As the base class says."""
    logits = router_logits(inputs.tokens, self.kernel[...])
    probs = jax.nn.softmax(logits)
    random = training and self.options.sample
    expert = sampled_expert(logits, training_key(self, inputs)) if random else best_expert(logits)
    hard = one_hot(expert, self.num_experts)
    everybody = training and self.options.dense_backward
    balance = balance_loss(probs, expert[..., None], inputs.mask)
    return Selection(
      chosen=jnp.ones_like(hard) if everybody else hard,
      weight=hard_forward(hard.astype(jnp.float32), probs),
      probs=probs,
      losses={"balance": balance},
      auxiliary_loss=self.options.balance_loss * balance,
    )
