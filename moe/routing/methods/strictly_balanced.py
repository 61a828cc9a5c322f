"""Strictly balanced gating: the ancestor of expert choice and of its causal rule. Shazeer et al. 2017, appendix F."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import queues
from moe.routing.capacity import Counted, expert_budget, expert_choice_capacity
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.losses import normalized
from moe.routing.methods.expert_choice import expert_choice, renormalized
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site
from moe.routing.scores import router_kernel, router_logits
from moe.routing.types import RaggedRouting, RouterInput, RouterOutput, SlotRouting


def batchwise_mask(routing: SlotRouting, n: int) -> jax.Array:
  """M_batchwise of one group, bool `[n, E]`: which tokens are among the m highest of each expert."""
  experts = jnp.arange(routing.token.shape[0])[:, None]
  return jnp.zeros((n, routing.token.shape[0]), bool).at[routing.token, experts].set(True, mode="drop")


def threshold_loss(scores: jax.Array, thresholds: jax.Array, batchwise: jax.Array, mask: jax.Array) -> jax.Array:
  """Scalar, L_batchwise divided by the number of real tokens: sum over experts of (M_threshold - M_batchwise)(X - T).

  Every term is at least 0, and all are 0 if the two masks agree. A threshold's gradient is (m - passing) / tokens, so
  it settles between its expert's m-th and next score. The scores get a gradient too, as in the paper. The paper's sum
  over the batch is a mean here, so that the weight does not depend on the batch size.

  Args:
    scores: float32 `[G, n, E]`, X.
    thresholds: float32 `[E]`, T.
    batchwise: bool `[G, n, E]`, M_batchwise.
    mask: bool `[G, n]`, False for padding.
  """
  disagreement = (scores > thresholds).astype(jnp.float32) - batchwise
  total = (disagreement * (scores - thresholds) * mask[..., None]).sum()
  return total / jnp.maximum(mask.sum(), 1)


def threshold_choice(scores: jax.Array, thresholds: jax.Array, mask: jax.Array) -> RaggedRouting:
  """One group's routing to every expert whose threshold a token's score exceeds, with gates renormalised over these.

  Args:
    scores: float32 `[n, E]`.
    thresholds: float32 `[E]`.
    mask: bool `[n]`, False for padding.
  """
  chosen = (scores > thresholds) & mask[:, None]
  return queues.ragged_of_chosen(chosen, normalized(jnp.where(chosen, scores, 0.0)))


@dataclasses.dataclass(frozen=True)
class StrictlyBalancedConfig(RouterConfig, name="strictly_balanced"):
  """Strictly balanced gating: exactly m tokens per expert in training, learned thresholds in evaluation.

  Attributes:
    capacity_factor: experts per token on average; in training an expert takes exactly m = n * capacity_factor / E of a
      group's n tokens; in evaluation whatever passes its threshold.
    counted: the tokens among these n: "real", or "all", padding included.
    group_size: tokens per group in training; 0 for the whole batch.
    threshold_loss: weight of L_batchwise, here a mean over tokens instead of the paper's sum over the batch.
  """

  paper = "Shazeer et al. 2017, arXiv 1701.06538, appendix F"

  capacity_factor: float = 2.0
  group_size: int = 0
  threshold_loss: float = 1.0
  counted: Counted = "real"

  def __post_init__(self):
    require(self.capacity_factor > 0, "capacity_factor", self.capacity_factor, "expected more than 0")
    check_group_size(self.group_size)
    require(self.threshold_loss > 0, "threshold_loss", self.threshold_loss, "expected more than 0: it moves thresholds")

  def make(self, site: Site, rngs: nnx.Rngs) -> "StrictlyBalanced":
    return StrictlyBalanced(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return not training

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return not training or within_sequences(self.group_size, length)

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return checked_groups(self.group_size, batch, length, training=training)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    expert_choice_capacity(self.groups(batch, length).size, site.num_experts, self.capacity_factor)


class StrictlyBalanced(Router):
  """Trained on each expert's m best tokens of the batch, evaluated by learned thresholds, which are causal."""

  config: StrictlyBalancedConfig

  def __init__(self, config: StrictlyBalancedConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    # The score of a uniform softmax; the paper does not say.
    self.thresholds = nnx.Param(jnp.full(site.num_experts, 1 / site.num_experts))

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    scores = self._scores(inputs.tokens)
    return self._batchwise(scores, inputs.mask) if training else self._by_threshold(scores, inputs.mask)

  def _scores(self, tokens: jax.Array) -> jax.Array:
    return jax.nn.softmax(router_logits(tokens, self.kernel[...]))

  def _batchwise(self, scores: jax.Array, mask: jax.Array) -> RouterOutput:
    n = mask.shape[1]
    factor, counted = self.config.capacity_factor, self.config.counted

    def one_group(scores: jax.Array, mask: jax.Array) -> SlotRouting:
      budget = expert_budget(mask, self.num_experts, factor, counted, training=True)
      return renormalized(expert_choice(scores, mask, *budget), n)

    routing = jax.vmap(one_group)(scores, mask)
    batchwise = jax.vmap(lambda r: batchwise_mask(r, n))(routing)
    loss = threshold_loss(scores, self.thresholds[...], batchwise, mask)
    metrics = routing_metrics(routing, mask, scores)
    return RouterOutput(routing, {"threshold": loss}, self.config.threshold_loss * loss, metrics)

  def _by_threshold(self, scores: jax.Array, mask: jax.Array) -> RouterOutput:
    routing = jax.vmap(lambda s, real: threshold_choice(s, self.thresholds[...], real))(scores, mask)
    return RouterOutput(routing, {}, jnp.zeros(()), routing_metrics(routing, mask, scores))

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """Empty: a decision needs only the thresholds."""
    return {}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    return self._by_threshold(self._scores(inputs.tokens), inputs.mask), state
