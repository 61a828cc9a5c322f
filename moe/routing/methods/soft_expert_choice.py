"""Soft expert choice: expert choice by a relaxed top-k, which is continuous and has a gradient.

Every expert spreads a budget of k over the tokens to maximise the sum of their scores less a quadratic regularisation
of strength lambda: the top-k as a linear program over the capped simplex, made strongly concave. The limit lambda = 0
is expert choice (Zhou et al. 2022, arXiv 2202.09368); at infinity it takes k / n of every token. The relaxation is one
of Blondel et al. 2020 (arXiv 2002.08871); as a router it is this project's, not a published method.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig, Counted, expert_budget, expert_choice_capacity, token_choice_capacity
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.losses import masked_mean
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterState, Site, step_mean
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput, RouterOutput, SlotRouting

Gate = Literal["softmax", "one"]
_BISECTIONS = 24


def relaxed_top_k(
  scores: jax.Array, mask: jax.Array, k: int, smoothing: float, taken: jax.Array | int | None = None
) -> jax.Array:
  """Argmax of <scores, a> - smoothing / 2 |a|^2 over 0 <= a <= 1, sum a = k: clip((scores - tau) / smoothing, 0, 1).

  The gradient is that of the exact solution: on the active set, where 0 < a < 1, da = (ds - mean ds) / smoothing.
  Elsewhere, and wherever the solution is the hard top-k, it is 0.

  Args:
    scores: float32 `[..., n]`.
    mask: bool `[..., n]`, False for padding, which receives 0.
    k: the budget, at most n; if fewer tokens are real, their number.
    smoothing: lambda, > 0, in units of the scores.
    taken: int32 `[..., 1]`, a budget known only at run time, at most k; None for k.

  Returns:
    float32 `[..., n]`.
  """
  budget = jnp.minimum(mask.sum(-1, keepdims=True), k if taken is None else taken)
  # Relative to the k-th highest score, in units of lambda, the threshold lies in [-1, 0], so a small lambda costs no
  # precision. Shifting all scores changes nothing, hence no gradient through the shift.
  ranked = highest(jax.lax.stop_gradient(jnp.where(mask, scores, -jnp.inf)), k)[0]
  kth = jnp.take_along_axis(ranked, jnp.maximum(budget - 1, 0), axis=-1)
  above = jnp.where(mask, (scores - jnp.where(budget > 0, kth, 0.0)) / smoothing, -2.0)

  near = _threshold(jax.lax.stop_gradient(above), budget)
  active, full = (above > near) & (above < near + 1), above >= near + 1
  count = active.sum(-1, keepdims=True)
  # The budget equation, solved on the active set: exact, unlike the bisection, and differentiable.
  mass = jnp.where(active, above, 0.0).sum(-1, keepdims=True) + full.sum(-1, keepdims=True)
  threshold = jnp.where(count > 0, (mass - budget) / jnp.maximum(count, 1), near)
  return jnp.where(active, jnp.clip(above - threshold, 0.0, 1.0), full)


def _threshold(above: jax.Array, budget: jax.Array) -> jax.Array:
  """`[..., 1]`, the t in [-1, 0] at which clip(above - t, 0, 1) sums to the budget; always cheaper than a sort."""

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    too_much = jnp.clip(above - middle, 0.0, 1.0).sum(-1, keepdims=True) > budget
    return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

  bounds = jnp.full(budget.shape, -1.0), jnp.zeros(budget.shape)
  return jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)[1]


def largest_shares(share: jax.Array, weight: jax.Array, capacity: int) -> SlotRouting:
  """The tokens with each expert's largest shares, `[E, C]`; slots without a positive share are empty.

  Args:
    share: float32 `[n, E]`, at least 0.
    weight: float32 `[n, E]`; the gradient flows through it.
    capacity: C.
  """
  taken, token = highest(jax.lax.stop_gradient(share).T, capacity)
  token = jnp.where(taken > 0, token, len(share))
  return SlotRouting(token, weight.at[token, jnp.arange(len(token))[:, None]].get(mode="fill", fill_value=0.0))


@dataclasses.dataclass(frozen=True)
class SoftExpertChoiceConfig(CapacityConfig, name="soft_expert_choice"):
  """Soft expert choice: every expert spreads a budget over the tokens of a group.

  Attributes:
    capacity_factor: experts per token on average, counting shares: an expert's budget is k = n * c / E.
    eval_capacity_factor: the one for evaluation; None for the same.
    group_size: tokens per group; 0 for the whole batch.
    smoothing: lambda: a share falls from 1 to 0 over this many nats of log-probability.
    buffer: slots per expert, in units of its budget. Shares that find no slot are lost; the metric `overflow` is their
      fraction of the budget, which a smaller lambda or a larger buffer reduces.
    gate: what the shares are multiplied by: "softmax", the router's probability, as in expert choice, or "one".
    counted: as in expert choice, the tokens that the budget is a share of: "real", or "all", padding included.
  """

  paper = "relaxed top-k, Blondel et al. 2020, arXiv 2002.08871, on Zhou et al. 2022, arXiv 2202.09368"

  capacity_factor: float = 2.0
  group_size: int = 0
  smoothing: float = 0.2
  buffer: float = 2.0
  gate: Gate = "softmax"
  counted: Counted = "real"

  def __post_init__(self):
    super().__post_init__()
    check_group_size(self.group_size)
    require(self.smoothing > 0, "smoothing", self.smoothing, "expected more than 0; expert_choice is the limit")
    require(self.buffer >= 1, "buffer", self.buffer, "expected at least 1: an expert has slots for its budget")

  def make(self, site: Site, rngs: nnx.Rngs) -> "SoftExpertChoice":
    return SoftExpertChoice(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return False

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return within_sequences(self.group_size, length)

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return checked_groups(self.group_size, batch, length, training=training)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    group = self.groups(batch, length).size
    for training in (True, False):
      expert_choice_capacity(group, site.num_experts, self.factor(training), field=self.factor_field(training))


class SoftExpertChoice(Router):
  """Soft expert choice over log-probabilities, which rank tokens as the probabilities of expert choice do.

  It sees the whole group, so it belongs in encoders. It costs as much as its slots: `buffer` times expert choice.
  """

  config: SoftExpertChoiceConfig

  def __init__(self, config: SoftExpertChoiceConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    n, factor = inputs.mask.shape[1], self.config.factor(training)
    k, taken = expert_budget(inputs.mask[:, None], self.num_experts, factor, self.config.counted, training=training)
    capacity = token_choice_capacity(n, self.num_experts, factor * self.config.buffer)
    log_probs = jax.nn.log_softmax(router_logits(inputs.tokens, self.kernel[...]))
    mask = jnp.broadcast_to(inputs.mask[:, None], (len(inputs.mask), self.num_experts, n))
    taken = jnp.expand_dims(taken, -1)  # [G, 1, 1]
    share = relaxed_top_k(log_probs.swapaxes(1, 2), mask, k, self.config.smoothing, taken).swapaxes(1, 2)
    routing = jax.vmap(lambda s, w: largest_shares(s, w, capacity))(share, _weight(share, log_probs, self.config.gate))
    metrics = routing_metrics(routing, inputs.mask, jnp.exp(log_probs))
    return RouterOutput(routing, {}, jnp.zeros(()), metrics | {"overflow": _overflow(share, routing.token)})


@dataclasses.dataclass(frozen=True)
class CausalSoftExpertChoiceConfig(TokenwiseConfig, CapacityConfig, name="causal_soft_expert_choice"):
  """Causal soft expert choice: thresholds learned over steps take the place of the group's.

  Attributes:
    capacity_factor: None for dropless; a factor gives slots, served by position.
    experts_per_token: c, the average that the thresholds are steered towards, counting shares.
    smoothing: lambda: a share falls from 1 to 0 over this many nats of log-probability.
    rate: eta: how many nats a step moves a threshold per unit of share per token off the budget.
    gate: what the shares are multiplied by: "softmax" or "one".
  """

  paper = "this project's; expert choice is Zhou et al. 2022, arXiv 2202.09368"

  experts_per_token: float = 2.0
  smoothing: float = 0.2
  rate: float = 0.1
  gate: Gate = "softmax"

  def __post_init__(self):
    super().__post_init__()
    for name in ("experts_per_token", "smoothing", "rate"):
      require(getattr(self, name) > 0, name, getattr(self, name), "expected more than 0")

  def make(self, site: Site, rngs: nnx.Rngs) -> "CausalSoftExpertChoice":
    return CausalSoftExpertChoice(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    each, experts = self.experts_per_token, site.num_experts
    require(each <= experts, "experts_per_token", each, f"expected at most the {experts} experts there are")


class CausalSoftExpertChoice(TokenwiseRouter):
  """Soft expert choice with a threshold per expert that is learned over steps instead of solved for in each group.

  The budget then holds on average, by integral control; every decision is a continuous function of its token only.

  Attributes:
    tau: `[E]`, the thresholds, initialised where equal probabilities meet the budget.
  """

  config: CausalSoftExpertChoiceConfig

  def __init__(self, config: CausalSoftExpertChoiceConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    uniform = -jnp.log(float(site.num_experts))
    self.tau = RouterState(jnp.full(site.num_experts, uniform - config.smoothing * self._budget))

  @property
  def _budget(self) -> float:
    """Share of the tokens that an expert should take."""
    return self.config.experts_per_token / self.num_experts

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    log_probs = jax.nn.log_softmax(router_logits(inputs.tokens, self.kernel[...]))
    share = jnp.clip((log_probs - self.tau[...]) / self.config.smoothing, 0.0, 1.0)
    seen = {"excess": jax.vmap(masked_mean, (-1, None))(share - self._budget, inputs.mask)} if training else {}
    return Selection(share > 0, _weight(share, log_probs, self.config.gate), jnp.exp(log_probs), seen=seen)

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    """The thresholds rise for experts that took too much."""
    return {"tau": self.tau[...] + self.config.rate * step_mean(share, seen["excess"])}


def _weight(share: jax.Array, log_probs: jax.Array, gate: Gate) -> jax.Array:
  return share * jnp.exp(log_probs) if gate == "softmax" else share


def _overflow(share: jax.Array, token: jax.Array) -> jax.Array:
  """Float32 scalar, fraction of the shares `[G, n, E]` that found none of the slots `[G, E, C]`; 0 without any."""
  share = jax.lax.stop_gradient(share).swapaxes(1, 2)  # [G, E, n]
  kept = jnp.take_along_axis(share, token, axis=2, mode="fill", fill_value=0.0).sum()
  total = share.sum()  # of whole budgets: 0, or at least 1
  return (total - kept) / jnp.maximum(total, 1.0)
