"""Expert threshold: expert choice by the cutoffs of past batches instead of the current one.

An expert takes every token that scores above its threshold: a moving average of its k-th largest score in each batch of
n tokens, k = c * n / E. Exact thresholds would differ from expert choice over such a batch in a fraction sqrt(2 p (1 -
p) / (pi n)) of the decisions, p = c / E; no decision depends on another token. The paper recommends an additional
shared expert (`shared_experts` of the model), since a token may be above no threshold at all.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.budget import ExpertBudgetConfig
from moe.routing.capacity import expert_choice_capacity, share_of_real_tokens, token_choice_capacity
from moe.routing.losses import router_z_loss
from moe.routing.methods.prefix_rank import normalized_over_chosen
from moe.routing.router import RouterState, Site, step_mean
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput


def cutoffs(scores: jax.Array, mask: jax.Array, capacity_factor: float) -> jax.Array:
  """Float32 `[E]`, each expert's k-th largest score in a batch, k = c * n / E of its n real tokens, at least 1.

  Args:
    scores: float32 `[G, n, E]`, at least 0.
    mask: bool `[G, n]`; if no token is real the cutoffs are -1.
    capacity_factor: c <= E.
  """
  num_experts = scores.shape[-1]
  flat = jnp.where(mask[..., None], scores, -1.0).reshape(-1, num_experts).T
  largest = highest(flat, expert_choice_capacity(flat.shape[1], num_experts, capacity_factor))[0]
  k = share_of_real_tokens(mask.sum(), num_experts, capacity_factor)
  return largest[:, jnp.clip(k - 1, 0, largest.shape[1] - 1)]


def moving_average(average: jax.Array, new: jax.Array, step: jax.Array, decay: float) -> jax.Array:
  """The bias-corrected exponential moving average; step 0 replaces its initial value.

  Equal to a(t) / (1 - decay^t) with a(t) = decay * a(t - 1) + (1 - decay) * new and a(0) = 0 (Kingma and Ba 2015).

  Args:
    average: float32 `[E]`, after `step` values.
    new: float32 `[E]`.
    step: int32, values before this one.
    decay: more than 0, less than 1.
  """
  rate = (1 - decay) / -jnp.expm1((step + 1) * math.log(decay))
  return average + rate * (new - average)


@dataclasses.dataclass(frozen=True)
class ThresholdConfig(TokenwiseConfig, ExpertBudgetConfig, name="threshold"):
  """Expert threshold: an expert takes every token above its moving-average cutoff.

  Attributes:
    capacity_factor: c, experts per token that the thresholds aim at.
    eval_capacity_factor: sets the slots in evaluation; the thresholds stay as training left them.
    renormalize, z_loss: as in every form of expert choice.
    gate: of an expert's output, and the score compared with the threshold: "softmax", or the paper's "sigmoid".
    decay: of the thresholds' moving average, per step. The paper's .999 suits long training runs.
    warmup_steps: first steps, which use the cutoffs of their own batch: plain expert choice over it, and not causal. A
      fifth of all tokens in the paper.
    slack: an expert has slack * c * T / E slots per sequence; the last tokens are dropped first. None for dropless.
  """

  paper = "Expert Threshold 2026, arXiv 2603.11535"

  gate: Literal["softmax", "sigmoid"] = "softmax"
  decay: float = 0.99
  warmup_steps: int = 0
  slack: float | None = 2.0

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.decay < 1, "decay", self.decay, "expected more than 0 and less than 1")
    require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "expected at least 0")
    require(self.slack is None or self.slack >= 1, "slack", self.slack, "expected at least 1, or None for dropless")
    require(
      self.slack is not None or self.eval_capacity_factor is None,
      "eval_capacity_factor",
      self.eval_capacity_factor,
      "expected None, since slack = None means dropless",
    )

  @property
  def growth(self) -> Literal["silent"] | None:
    return "silent" if self.gate == "sigmoid" and not self.renormalize and self.slack is None else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "Threshold":
    return Threshold(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return not training or self.warmup_steps == 0

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return self.is_causal(training=training)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    expert_choice_capacity(batch * length, site.num_experts, self.factor(training=True))


@dataclasses.dataclass(frozen=True)
class ExpertThresholdConfig(ThresholdConfig, name="expert_threshold"):
  """As published: sigmoid gates that are not normalised, no limit on slots, and 4,000 steps of expert choice first.

  Those steps see later tokens, so a decoder refuses it unless leakage is allowed: `warmup_steps=0` is causal. The paper
  has a shared expert beside it (`moe.shared_experts = 1`).
  """

  gate: Literal["softmax", "sigmoid"] = "sigmoid"
  decay: float = 0.999
  warmup_steps: int = 4000
  slack: float | None = None


class Threshold(TokenwiseRouter):
  """Expert choice that looks at no other token.

  The thresholds start at a neutral score: 1 / E, or 1 / 2 for sigmoid gates. They decide only the first step, whose
  cutoffs replace them; in it about half of all tokens are above, and an expert takes as many as it has slots. Of a step
  in several micro-batches the cutoff is the mean of theirs, weighted by their tokens: not quite the k-th score of all.
  """

  config: ThresholdConfig

  def __init__(self, config: ThresholdConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    indifferent = 1 / site.num_experts if config.gate == "softmax" else 0.5
    self.threshold = RouterState(jnp.full(site.num_experts, indifferent))
    self.step = RouterState(jnp.zeros((), jnp.int32))

  def capacity(self, length: int, *, training: bool) -> int | None:
    slack = self.config.slack
    return (
      None if slack is None else token_choice_capacity(length, self.num_experts, slack * self.config.factor(training))
    )

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    logits = router_logits(inputs.tokens, self.kernel[...])
    probs = jax.nn.softmax(logits)
    gates = probs if self.config.gate == "softmax" else jax.nn.sigmoid(logits)
    scores = jax.lax.stop_gradient(gates)
    chosen = scores > self.threshold[...]
    seen = {"cutoffs": cutoffs(scores, inputs.mask, self.config.capacity_factor)} if training else {}
    if seen and self.config.warmup_steps:
      chosen = jnp.where(self.step[...] < self.config.warmup_steps, scores >= seen["cutoffs"], chosen)
    weight = normalized_over_chosen(gates, chosen) if self.config.renormalize else gates
    z_loss = router_z_loss(logits, inputs.mask)
    return Selection(chosen, weight, probs, {"z": z_loss}, self.config.z_loss * z_loss, seen=seen)

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    """The thresholds move towards this step's cutoffs."""
    new, step = step_mean(share, seen["cutoffs"]), self.step[...]
    return {"threshold": moving_average(self.threshold[...], new, step, self.config.decay), "step": step + 1}
