"""MoE++: experts that cost nothing are chosen like any other. Jin et al. 2024, arXiv 2410.07348.

A token has k of E ordinary and Z free experts: zero, copy and constant ones (`moe.experts.free`). So easy tokens can
have fewer than k ordinary ones, or none.
"""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.methods.noisy_top_k import sparse_gates
from moe.routing.router import FreeCounts, Site
from moe.routing.scores import router_bias, router_kernel, router_logits
from moe.routing.top_k import Logits, TopKConfig, TopKRouter


def balance_weights(experts: int, free: int, tau: float) -> jax.Array:
  """Float32 `[E + Z]`, what to multiply p by for the heterogeneous balance loss, the sum of eta_i f_i p_i.

  eta is 1 for ordinary experts and tau for free ones, so the loss is level where each of these has 1 / tau times the
  tokens of an ordinary one. With Switch's factor for so many experts, (E + Z / tau) in place of E, it is 1 there.
  """
  eta = jnp.where(jnp.arange(experts + free) < experts, 1.0, tau)
  # The factor of `balance_loss` is the number of experts that it is given.
  return eta * (experts + free / tau) / (experts + free)


@dataclasses.dataclass(frozen=True)
class MoEPlusPlusConfig(TopKConfig, name="moe_plus_plus"):
  """Top-k over ordinary and free experts; the gates are the softmax over all, not renormalised.

  Dropless, as their public model is. With a capacity factor c, an ordinary expert has c n / (E + Z / tau) slots in a
  group of n tokens, and a free one has room for 1 / tau times as many, as in the paper; c = top_k holds every choice of
  a batch that is balanced so.

  The paper's gating residuals are left out: there the logits of the layer before, times a matrix, are added to the
  logits. The code of the public model, other than the paper, multiplies the experts' input by k and divides the gates
  by their sum without the zero experts'; `renormalize=True` divides them by the sum of all k.

  Attributes:
    top_k: experts per token, ordinary and free.
    zero: experts that give 0.
    copy: experts that give their input.
    constant: experts that give a1 x + a2 v. The public model has 1, 1 and 2 of the three kinds.
    tau: how much free experts count in the balance loss; the less, the more tokens go to them.
    balance_loss: weight of the heterogeneous balance loss, 1 when balanced (`docs/losses.md`).
  """

  paper = "Jin et al. 2024 (MoE++), arXiv 2410.07348, without gating residuals"

  zero: int = 1
  copy: int = 1
  constant: int = 2
  tau: float = 0.75
  balance_loss: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    for name, count in self.free_experts._asdict().items():
      require(count >= 0, name, count, "expected at least 0")
    require(sum(self.free_experts) >= 1, "zero", self.zero, "expected at least 1 of zero, copy and constant together")
    require(0.01 <= self.tau <= 1, "tau", self.tau, "expected at least 0.01 and at most 1")

  @property
  def free_experts(self) -> FreeCounts:
    return FreeCounts(self.zero, self.copy, self.constant)

  def make(self, site: Site, rngs: nnx.Rngs) -> "MoEPlusPlus":
    return MoEPlusPlus(self, site, rngs=rngs)

  def slots_per_expert(self, group: int, num_experts: int | Fraction, *, training: bool) -> int:
    shares = num_experts + sum(self.free_experts) / Fraction(str(self.tau))
    return super().slots_per_expert(group, shares, training=training)

  def slots_per_free_expert(self, group: int, num_experts: int, *, training: bool) -> int:
    """1 / tau times those of an ordinary expert, and at most n."""
    slots = self.slots_per_expert(group, num_experts, training=training)
    return min(math.floor(slots / Fraction(str(self.tau)) + Fraction(1, 2)), group)


class MoEPlusPlus(TopKRouter):
  """Token choice whose last Z experts are free.

  Attributes:
    kernel: `[d, E]`, of the ordinary experts.
    free_kernel: `[d, Z]`.
  """

  config: MoEPlusPlusConfig

  def __init__(self, config: MoEPlusPlusConfig, site: Site, *, rngs: nnx.Rngs):
    super().__init__(config, site, rngs=rngs)
    beside = dataclasses.replace(site, num_experts=self.num_free)
    self.free_kernel = router_kernel(beside, rngs)
    self.free_bias = router_bias(beside, rngs) if config.router_bias else None

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    free = router_logits(tokens, self.free_kernel[...])
    free = free if self.free_bias is None else free + self.free_bias[...]
    both = jnp.concatenate([super().logits(tokens, key).clean, free], axis=-1)  # [G, n, E + Z]
    return Logits(both, both)

  def room(self, experts: jax.Array, group: int, *, training: bool) -> jax.Array:
    of_free = self.config.slots_per_free_expert(group, self.num_experts, training=training)
    return jnp.where(experts < self.num_experts, super().room(experts, group, training=training), of_free)

  def free_gates(self, choices: jax.Array, gates: jax.Array, kept: jax.Array) -> jax.Array:
    return sparse_gates(choices - self.num_experts, jnp.where(kept, gates, 0.0), self.num_free)

  def balanced(self, scores: jax.Array) -> jax.Array:
    return super().balanced(scores) * balance_weights(self.num_experts, self.num_free, self.config.tau)
