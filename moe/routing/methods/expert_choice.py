"""Expert choice: every expert takes the tokens that score highest with it. Zhou et al. 2022, arXiv 2202.09368."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.routing.budget import ExpertBudgetConfig, GroupBudgetConfig
from moe.routing.capacity import expert_budget, expert_choice_capacity
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.losses import router_z_loss, scaled
from moe.routing.methods.prefix_rank import PrefixRankConfig
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site
from moe.routing.sampling import training_noise
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.types import RouterInput, RouterOutput, SlotRouting


def expert_choice(scores: jax.Array, mask: jax.Array, k: int, taken: jax.Array | int | None = None) -> SlotRouting:
  """Equations 1 to 3 of the paper for one group: G, I = TopK(S^T, k), both `[E, k]`.

  Padding ranks below every real token; a slot with only padding left stays empty (token n, weight 0). The gradient
  flows to the scores through the chosen values, not through the choice.

  Args:
    scores: float32 `[n, E]`, softmax over experts.
    mask: bool `[n]`, False for padding.
    k: slots per expert.
    taken: tokens per expert, which fill the first slots; None for k.
  """
  weight, token = highest(jnp.where(mask[:, None], scores, -1.0).T, k)
  empty = weight < 0 if taken is None else (weight < 0) | (jnp.arange(k) >= taken)
  return SlotRouting(jnp.where(empty, scores.shape[0], token), jnp.where(empty, 0.0, weight))


def renormalized(routing: SlotRouting, n: int) -> SlotRouting:
  """One group's routing with each token's weights divided by their sum.

  Komatsuzaki et al. 2022 (sparse upcycling), section 4.1: equal experts then give a chosen token the dense output.
  """
  none = jnp.zeros(n + 1, jnp.float32)
  weight = scaled(routing.weight, none.at[routing.token].max(jax.lax.stop_gradient(routing.weight))[routing.token])
  total = none.at[routing.token].add(weight)
  return SlotRouting(routing.token, weight / jnp.where(total > 0, total, 1.0)[routing.token])


@dataclasses.dataclass(frozen=True)
class ExpertChoiceConfig(GroupBudgetConfig, name="expert_choice"):
  """Expert choice: every expert takes its top k tokens of each group.

  Attributes:
    capacity_factor, eval_capacity_factor, renormalize, z_loss, softmax, counted, noise: as in every form of it.
    group_size: tokens per group; 0 for the whole batch.
  """

  paper = "Zhou et al. 2022, arXiv 2202.09368"

  group_size: int = 0

  def __post_init__(self):
    super().__post_init__()
    check_group_size(self.group_size)

  def make(self, site: Site, rngs: nnx.Rngs) -> "ExpertChoice":
    return ExpertChoice(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return False

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return within_sequences(self.group_size, length)

  def causal_twin(self) -> RouterConfig | None:
    """Dropless prefix-rank choice; None for a softmax over tokens, which no causal rule can compute."""
    if self.softmax == "tokens":
      return None
    shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(ExpertBudgetConfig)}
    return PrefixRankConfig(**shared, slack=None)

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return checked_groups(self.group_size, batch, length, training=training)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    group = self.groups(batch, length).size
    for training in (True, False):
      expert_choice_capacity(group, site.num_experts, self.factor(training), field=self.factor_field(training))


class ExpertChoice(Router):
  """Expert choice exactly as published. It sees the whole group, so it belongs in encoders."""

  config: GroupBudgetConfig

  def __init__(self, config: GroupBudgetConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    logits = router_logits(inputs.tokens, self.kernel[...])
    scores = self.scores(logits + training_noise(self, inputs, logits.shape, training=training), inputs.mask)
    routing = jax.vmap(lambda s, m: self.choose(s, m, training=training))(scores, inputs.mask)
    if self.config.renormalize:
      routing = jax.vmap(lambda r: renormalized(r, inputs.mask.shape[1]))(routing)
    z_loss = router_z_loss(logits, inputs.mask)
    metrics = routing_metrics(routing, inputs.mask, jax.nn.softmax(logits))
    return RouterOutput(routing, {"z": z_loss}, self.config.z_loss * z_loss, metrics)

  def scores(self, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """float32 `[G, n, E]` from logits `[G, n, E]` and mask `[G, n]`."""
    if self.config.softmax == "experts":
      return jax.nn.softmax(logits)
    return jax.nn.softmax(logits, axis=1, where=mask[..., None])

  def choose(self, scores: jax.Array, mask: jax.Array, *, training: bool) -> SlotRouting:
    """The choice in one group with scores `[n, E]` and mask `[n]`."""
    return expert_choice(scores, mask, *self._budget(mask, training=training))

  def _budget(self, mask: jax.Array, *, training: bool) -> tuple[int, jax.Array | int]:
    factor = self.config.factor(training)
    return expert_budget(mask, self.num_experts, factor, self.config.counted, training=training)
