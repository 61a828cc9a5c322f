"""Expert choice by prefix ranks: an expert takes a token if it is among the best c / E of its sequence so far.

Exactly causal, and stateless unless past batches are used. With rho = c / E, an expert takes token t = 1, 2, ... of a
sequence if

    rank_t + m0 F(s_t) + u_t < rho (t + m0),

where rank_t is how many earlier tokens scored higher, F(s) the share of past batches' scores above s, with the weight
of m0 pseudo-observations, and u_t a fixed number in [0, 1). If the scores of a sequence are exchangeable, rank_t is
uniform on 0 ... t - 1 and independent of earlier ranks (Rényi 1962), so an expert takes every token with probability
rho: rho T of them, with variance T rho (1 - rho). Ties are broken by u: with q earlier equal scores u_t counts 1 + q
times, or experts would take all of many equal tokens.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.budget import ExpertBudgetConfig
from moe.routing.losses import normalized, router_z_loss
from moe.routing.router import RouterState, Site, step_mean
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.solvers.ranks import Earlier, rank_among_earlier
from moe.routing.solvers.score_histogram import BINS, histogram, share_above
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput


def among_the_best(
  earlier: Earlier, share: float, chance: jax.Array, above: jax.Array | float = 0.0, weight: jax.Array | float = 0.0
) -> jax.Array:
  """Which experts take each token by the rule above, bool `[n, E]`.

  Args:
    earlier: the ranks of n tokens.
    share: rho, the share of the tokens that an expert takes.
    chance: float32 `[n, E]` in [0, 1), u; 0 takes more than the share: ceil(rho t) / t of the ranks.
    above: float32 `[n, E]`, F, the share of past scores above each one.
    weight: m0, how many tokens F counts for.
  """
  rank = earlier.above + chance * (1 + earlier.equal) + weight * above
  return rank < share * (earlier.count[..., None] + 1 + weight)


def spread_chance(count: jax.Array, num_experts: int) -> jax.Array:
  """Float32 `[..., E]` in [0, 1), fixed numbers for tokens with `count` earlier tokens in their sequence.

  An additive recurrence in both indices with powers of the inverse plastic number as steps, in units of 2^-32: more
  evenly spread over positions and experts than random numbers, and the same on every machine.
  """
  position = (count[..., None] + 1).astype(jnp.uint32) * jnp.uint32(3242174889)
  expert = jnp.arange(1, num_experts + 1, dtype=jnp.uint32) * jnp.uint32(2447445414)
  return ((position + expert) >> 8).astype(jnp.float32) * 2.0**-24


def share_under_cap(capacity_factor: float, num_experts: int, cap: int) -> float:
  """The share rho with which min(cap, Binomial(E, rho)) is c on average: what capped tokens give up, others take.

  Exact for experts that choose independently; 1 if c = cap, where every token goes to its `cap` best experts.

  Args:
    capacity_factor: c, at most the cap.
    num_experts: E.
    cap: most experts per token.
  """
  if cap >= num_experts or capacity_factor >= cap:
    return min(capacity_factor / min(cap, num_experts), 1.0)
  # Logarithms, as the coefficients of a thousand experts overflow.
  ways = [math.lgamma(num_experts + 1) - math.lgamma(k + 1) - math.lgamma(num_experts - k + 1) for k in range(cap)]

  def mean(share: float) -> float:
    yes, no = math.log(share), math.log1p(-share)
    chances = [math.exp(way + k * yes + (num_experts - k) * no) for k, way in enumerate(ways)]
    return cap - sum((cap - k) * chance for k, chance in enumerate(chances))

  low, high = capacity_factor / num_experts, 1.0
  for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if mean(middle) < capacity_factor else (low, middle)
  return high


def best_of_chosen(chosen: jax.Array, scores: jax.Array, cap: int) -> jax.Array:
  """`chosen` `[..., E]` with only the `cap` experts of a token with its highest scores `[..., E]` left."""
  best = highest(jnp.where(chosen, scores, -1.0), min(cap, chosen.shape[-1]))[1]
  return chosen & (best[..., None] == jnp.arange(chosen.shape[-1])).any(-2)


def normalized_over_chosen(weight: jax.Array, chosen: jax.Array) -> jax.Array:
  """The weights `[..., E]` of a token's chosen experts, divided by their sum; 0 for the others."""
  return normalized(jnp.where(chosen, weight, 0.0))


def capacity_with_slack(group: int, num_experts: int, capacity_factor: float, slack: float) -> int:
  """Slots for a load of c * n / E on average: `slack` standard deviations more, at least 1 and at most n.

  The standard deviation is taken as the square root of the mean, an upper bound for independent choices.

  Args:
    group: n, tokens of the routing group.
    num_experts: E.
    capacity_factor: c.
    slack: standard deviations.
  """
  mean = capacity_factor * group / num_experts
  return min(max(math.ceil(mean + slack * math.sqrt(mean)), 1), group)


@dataclasses.dataclass(frozen=True)
class PrefixRankConfig(TokenwiseConfig, ExpertBudgetConfig, name="prefix_rank"):
  """Prefix-rank expert choice: causal, with the budget kept on average.

  Attributes:
    capacity_factor, eval_capacity_factor, renormalize, z_loss: as in every form of expert choice.
    slack: slots per expert beyond the c * T / E tokens it takes of a sequence on average, in standard deviations; when
      they run out, later tokens are dropped. None for dropless.
    pseudo_observations: m0, how many earlier tokens the scores of past batches count for, so that unusual first tokens
      do not crowd the experts. 0 for none; larger values approach a fixed threshold.
    decay: of the moving average over past batches, per step; evaluation does not update it.
    cap: most experts per token, those that it scores highest with; other tokens take the places. None for no cap.
  """

  paper = "this project's; independence of the ranks: Rényi 1962, Annales de Clermont 8"

  slack: float | None = 3.0
  pseudo_observations: float = 0.0
  decay: float = 0.99
  cap: int | None = None

  def __post_init__(self):
    super().__post_init__()
    require(self.slack is None or self.slack >= 0, "slack", self.slack, "expected at least 0, or None for dropless")
    many = self.pseudo_observations
    require(many >= 0, "pseudo_observations", many, "expected at least 0")
    require(0 <= self.decay < 1, "decay", self.decay, "expected at least 0 and less than 1")
    most = max(self.factor(training) for training in (True, False))
    require(self.cap is None or self.cap >= most, "cap", self.cap, f"expected at least the capacity factor {most:g}")

  def make(self, site: Site, rngs: nnx.Rngs) -> "PrefixRank":
    return PrefixRank(self, site, rngs=rngs)


class PrefixRank(TokenwiseRouter):
  """Expert choice for decoders, in training and when decoding step by step."""

  config: PrefixRankConfig

  def __init__(self, config: PrefixRankConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    self.past = RouterState(jnp.zeros((site.num_experts, BINS))) if config.pseudo_observations else None

  def capacity(self, length: int, *, training: bool) -> int | None:
    slack = self.config.slack
    return None if slack is None else capacity_with_slack(length, self.num_experts, self.config.factor(training), slack)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    logits, scores = self._scores(inputs)
    earlier = jax.vmap(rank_among_earlier)(scores, inputs.mask, _positions(inputs))
    selection = self._selection(logits, scores, earlier, inputs.mask, training)
    if training and self.past is not None:
      selection = dataclasses.replace(selection, seen={"scores": histogram(scores, inputs.mask)})
    return selection

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    decay = self.config.decay
    return {"past": decay * self.past[...] + (1 - decay) * step_mean(share, seen["scores"])}

  def init_memory(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`scores`: float32 `[batch, length, E]`, -1 where there is none; `seen`: int32 `[batch]`, tokens so far."""
    scores = jnp.full((batch, length, self.num_experts), -1.0)
    return {"scores": scores, "seen": jnp.zeros(batch, jnp.int32)}

  def select_next(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[Selection, dict[str, jax.Array]]:
    past, seen = state["scores"], state["seen"]
    logits, scores = self._scores(inputs)
    start = jnp.zeros_like(seen) if inputs.positions is None else seen - inputs.positions[0]
    counts = (jnp.arange(past.shape[1]) >= start[:, None]) & (past[..., 0] >= 0)  # [batch, length]
    above = ((past > scores[0, :, None]) & counts[..., None]).sum(1)  # [batch, E]
    equal = ((past == scores[0, :, None]) & counts[..., None]).sum(1)
    earlier = jax.tree.map(lambda leaf: leaf[None], Earlier(above, equal, counts.sum(1)))
    selection = self._selection(logits, scores, earlier, inputs.mask, training=False)
    kept = jnp.where(inputs.mask[0][:, None], scores[0], -1.0)
    past = past.at[jnp.arange(len(seen)), seen].set(kept)
    return selection, state | {"scores": past, "seen": seen + 1}

  def _scores(self, inputs: RouterInput) -> tuple[jax.Array, jax.Array]:
    """Logits, and the scores that rank tokens, without a gradient, which a comparison does not have."""
    logits = router_logits(inputs.tokens, self.kernel[...])
    return logits, jax.lax.stop_gradient(jax.nn.softmax(logits))

  def _selection(
    self, logits: jax.Array, scores: jax.Array, earlier: Earlier, mask: jax.Array, training: bool
  ) -> Selection:
    factor, cap = self.config.factor(training), self.config.cap
    share = factor / self.num_experts if cap is None else share_under_cap(factor, self.num_experts, cap)
    chance = spread_chance(earlier.count, self.num_experts)
    chosen = among_the_best(earlier, share, chance, *self._past_scores(scores))
    chosen = chosen if cap is None else best_of_chosen(chosen, scores, cap)
    probs = jax.nn.softmax(logits)
    weight = normalized_over_chosen(probs, chosen) if self.config.renormalize else probs
    z_loss = router_z_loss(logits, mask)
    return Selection(chosen, weight, probs, {"z": z_loss}, self.config.z_loss * z_loss, most=cap)

  def _past_scores(self, scores: jax.Array) -> tuple[jax.Array | float, jax.Array | float]:
    """F at the scores, and m0 per expert; before the first step the past is unknown, and m0 is 0."""
    if self.past is None:
      return 0.0, 0.0
    known = self.past[...].sum(-1) > 0
    return share_above(scores, self.past[...]), self.config.pseudo_observations * known


def _positions(inputs: RouterInput) -> jax.Array:
  """int32 `[G, n]`; each row is one sequence if the model gives no positions."""
  if inputs.positions is not None:
    return inputs.positions
  return jnp.broadcast_to(jnp.arange(inputs.mask.shape[1], dtype=jnp.int32), inputs.mask.shape)
