"""Top-1 routers that learn only from the cost of their choices: REINFORCE.

The chosen expert has weight 1, so the cross-entropy has no gradient with respect to the router. It learns from the
`Policy` that it hands to the trainer (`moe.routing.policy`), where the cost of a token's choice is the token's own
cross-entropy. The gradient of log_prob also reaches the layers below, whose outputs the policy reads.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.losses import balance_loss, negative_entropy
from moe.routing.methods.top_p import nucleus
from moe.routing.router import Site
from moe.routing.sampling import best_expert, one_hot, sampled_expert, training_key
from moe.routing.scores import KERNEL_STDDEV, router_kernel, router_logits
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import Policy, RouterInput


def log_probability(logits: jax.Array, expert: jax.Array) -> jax.Array:
  """float32 `[...]`, log softmax of `logits` `[..., E]` at `expert`, int32 `[...]`."""
  return jnp.take_along_axis(jax.nn.log_softmax(logits), expert[..., None], axis=-1)[..., 0]


def expected_cost(logits: jax.Array, costs: jax.Array) -> jax.Array:
  """float32 `[...]`, sum_e p_e c_e with p = softmax(logits) `[..., E]`, without gradient, and costs `[E]`.

  Per-expert baselines must enter as this mean. The cost c_i of the sampled expert would be biased: once learned, it
  removes the very difference between experts that the policy learns from.
  """
  return (jax.nn.softmax(jax.lax.stop_gradient(logits)) * costs).sum(-1)


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(TokenwiseConfig, CapacityConfig, name="reinforce"):
  """REINFORCE: a sampled expert of weight 1, learned from the token's cross-entropy.

  Attributes:
    policy_loss: weight of the policy loss and of its baseline's loss.
    negative_entropy_loss: weight of the policy's negative entropy, smallest when all experts are equally likely.
    balance_loss: weight of Switch's load balancing loss.
    balance_scope: whether the tokens of a "sequence" are balanced with each other, or those of the whole "batch".
  """

  paper = "Bengio, Léonard and Courville 2013, arXiv 1308.3432; Williams 1992"

  policy_loss: float = 0.01
  negative_entropy_loss: float = 0.0
  balance_loss: float = 0.01
  balance_scope: Literal["batch", "sequence"] = "sequence"

  def __post_init__(self):
    super().__post_init__()
    for name in ("policy_loss", "negative_entropy_loss", "balance_loss"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "expected at least 0")

  def make(self, site: Site, rngs: nnx.Rngs) -> "Reinforce":
    return Reinforce(self, site, rngs=rngs)


class Reinforce(TokenwiseRouter):
  """One expert of weight 1: sampled from softmax(x W) in training, the most probable one in evaluation.

  The baseline is the policy's expected cost, from one learned mean cost per expert.
  """

  config: ReinforceConfig

  def __init__(self, config: ReinforceConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    self._init_baseline(site, rngs)

  def _init_baseline(self, site: Site, rngs: nnx.Rngs) -> None:
    self.baseline = nnx.Param(jnp.full(site.num_experts, cost_before_training(site)))

  def _allowed(self, logits: jax.Array) -> jax.Array:
    """The logits `[G, n, E]` from which experts are sampled."""
    return logits

  def _baseline(self, tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """float32 `[G, n]`, the expected cost of each token before its expert is sampled."""
    return expected_cost(logits, self.baseline[...])

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """See the base class."""
    config, policy = self.config, None
    logits = router_logits(inputs.tokens, self.kernel[...])
    if training:
      allowed = self._allowed(logits)
      expert = sampled_expert(allowed, training_key(self, inputs))
      baseline = self._baseline(inputs.tokens, allowed)
      policy = Policy(log_probability(allowed, expert), baseline, jnp.float32(config.policy_loss))
    else:
      expert = best_expert(logits)
    probs = jax.nn.softmax(logits)
    together = inputs.mask.size if config.balance_scope == "batch" else None
    losses = {
      "balance": balance_loss(probs, expert[..., None], inputs.mask, together=together),
      "negative_entropy": negative_entropy(logits, inputs.mask),
    }
    total = config.balance_loss * losses["balance"] + config.negative_entropy_loss * losses["negative_entropy"]
    return Selection(one_hot(expert, self.num_experts), jnp.ones_like(probs), probs, losses, total, policy, most=1)


@dataclasses.dataclass(frozen=True)
class RLRConfig(ReinforceConfig, name="rl_r"):
  """RL-R: REINFORCE with a truncated policy and a baseline that reads the token; the weights are this project's.

  Attributes:
    nucleus: total probability of the most probable experts that are sampled from; 1 for all experts.
  """

  paper = "Clark et al. 2022, arXiv 2202.01169, RL-R"

  nucleus: float = 0.9
  negative_entropy_loss: float = 0.0005

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.nucleus <= 1, "nucleus", self.nucleus, "expected more than 0 and at most 1")

  def make(self, site: Site, rngs: nnx.Rngs) -> "RLR":
    return RLR(self, site, rngs=rngs)


class RLR(Reinforce):
  """REINFORCE with a truncated policy and a baseline that reads the token. Evaluation as in REINFORCE.

  The paper gives nucleus sampling, a learned baseline, and regularisers of entropy and balance. The details are this
  project's: log_prob is that of the truncated, renormalised policy, from which experts are sampled; the baseline is
  linear in the token, and its gradient does not reach the layers below.
  """

  config: RLRConfig

  def _init_baseline(self, site: Site, rngs: nnx.Rngs) -> None:
    # Not 0: an optimizer with steps relative to a parameter's size would hardly move it.
    self.baseline_kernel = nnx.Param(KERNEL_STDDEV * jax.random.normal(rngs.params(), (site.d_model,), jnp.float32))
    self.baseline = nnx.Param(jnp.full((), cost_before_training(site)))

  def _allowed(self, logits: jax.Array) -> jax.Array:
    return within_nucleus(logits, self.config.nucleus)

  def _baseline(self, tokens: jax.Array, logits: jax.Array) -> jax.Array:
    return router_logits(jax.lax.stop_gradient(tokens), self.baseline_kernel[...]) + self.baseline[...]


def within_nucleus(logits: jax.Array, mass: float) -> jax.Array:
  """The logits `[..., E]`, -inf outside the `nucleus` of that mass; the gradient flows through the others."""
  probs = jax.nn.softmax(jax.lax.stop_gradient(logits))
  return jnp.where(nucleus(probs, mass), logits, -jnp.inf)


def cost_before_training(site: Site) -> float:
  """The cost per token of a uniform prediction: ln V nats; 1 if the vocabulary is unknown, or of a single id.

  Not 0: an optimizer with steps relative to a parameter's size would hardly move it.
  """
  return math.log(site.vocab_size or 1) or 1.0
