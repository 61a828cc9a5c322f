"""Every token goes to its k highest-ranked experts: the base of the token-choice family.

Published code queues all first choices of a group before any second choice, across concatenated sequences. A later
token can then displace an earlier token's second choice, and one sequence another's (6% of outputs, measured). Here
slots are counted per sequence and by position, all choices of a token together: causal, independent of the batch, and
the same when decoding step by step.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import queues
from moe.routing.capacity import CapacityConfig, token_choice_capacity
from moe.routing.groups import Groups, checked_groups
from moe.routing.losses import balance_loss, router_z_loss
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, Site
from moe.routing.sampling import training_key
from moe.routing.scores import router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.types import RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting


def expert_scores(logits: jax.Array, kind: Literal["softmax", "sigmoid"]) -> jax.Array:
  """`[..., E]`, in (0, 1): the softmax over experts, or the sigmoid of each logit."""
  return jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits)


def normalized(scores: jax.Array) -> jax.Array:
  """`[..., m]`, each row divided by its sum; 0 if the complete row has underflowed."""
  return scores / jnp.maximum(scores.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def top_choices(
  scores: jax.Array, k: int, *, renormalize: bool, ranking: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Each token's experts `[..., k]` (int32, best first, ties to the lower index) and their gates `[..., k]`.

  The gradient flows through the gates only. Renormalised gates are divided by their sum over all k choices, before any
  is dropped, as in GShard's algorithm 1: the other choices do not make up for a dropped one.

  Args:
    scores: float32 `[..., n, E]`, from which the gates are taken.
    k: experts per token.
    renormalize: whether the k gates sum to 1. Softmax gates then equal the softmax over only the k chosen logits.
    ranking: float32 `[..., n, E]`, whose k highest are chosen; None for the scores.
  """
  ranking = scores if ranking is None else ranking
  choices = highest(jax.lax.stop_gradient(ranking), k)[1]
  gates = jnp.take_along_axis(scores, choices, axis=-1)
  return choices, normalized(gates) if renormalize else gates


@dataclasses.dataclass(frozen=True)
class TopKConfig(CapacityConfig):
  """Base config of top-k routers: each token goes to its k highest-ranked experts.

  Attributes:
    top_k: experts per token.
    capacity_factor: each expert has capacity_factor * n / E slots in a group of n tokens (`moe.routing.capacity`), so
      top_k is the smallest that can hold every choice; None for dropless.
    eval_capacity_factor: the one for evaluation and decoding; None for the same. At E no choice is ever dropped.
    group_size: tokens per group, where a group is not one sequence; 0 for the whole batch.
    scores: how logits become scores; the gates are the scores of the chosen experts.
    renormalize: whether the gates of a token's k choices sum to 1.
    balance_loss: weight of Switch's load balancing loss. Sigmoid scores are first divided by their sum over the
      experts, as in DeepSeek-V3 (arXiv 2412.19437, eq. 17-20).
    z_loss: weight of the router z-loss.
  """

  top_k: int = 2
  group_size: int = 0
  scores: Literal["softmax", "sigmoid"] = "softmax"
  renormalize: bool = False
  balance_loss: float = 0.0
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.top_k >= 1, "top_k", self.top_k, "expected at least 1 expert per token")
    require(
      self.group_size == 0 or (self.group_size > 0 and not self.queues_by_sequence),
      "group_size",
      self.group_size,
      "expected 0: where slots are filled by position a group is one sequence; more is for dropless and batch_priority",
    )
    require(
      self.top_k > 1 or not self.renormalize,
      "renormalize",
      self.renormalize,
      "expected False for top_k = 1: its only gate would always be 1 and the router would learn nothing",
    )
    for field in dataclasses.fields(self):
      if field.name.endswith("_loss"):
        require(getattr(self, field.name) >= 0, field.name, getattr(self, field.name), "expected at least 0")

  @property
  def dropless(self) -> bool:
    return self.capacity_factor is None

  @property
  def queues_by_sequence(self) -> bool:
    """Whether slots are counted per sequence, by position."""
    return not self.dropless

  @property
  def draws(self) -> bool:
    """Whether training draws random numbers."""
    return False

  def is_causal(self, *, training: bool) -> bool:
    return True

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return True

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return (
      Groups(length) if self.queues_by_sequence else checked_groups(self.group_size, batch, length, training=training)
    )

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    experts = site.num_experts
    require(self.top_k <= experts, "top_k", self.top_k, f"expected at most the {experts} experts there are")


def check_load_loss(weight: float, top_k: int, experts: int) -> None:
  """Raises `ConfigError` if there is a load loss although every token goes to every expert."""
  require(
    weight == 0 or top_k < experts,
    "load_loss",
    weight,
    f"expected 0 unless top_k < {experts} experts, as the load is constant",
  )


@dataclasses.dataclass(frozen=True)
class Logits:
  """The output of the router's linear layer.

  Attributes:
    clean: float32 `[G, n, E]`, without noise.
    noisy: float32 `[G, n, E]`, with training noise; the scores are computed from it.
    noise_std: standard deviation of the noise, a number or `[G, n, E]`.
  """

  clean: jax.Array
  noisy: jax.Array
  noise_std: jax.Array | float = 0.0


def with_noise(logits: jax.Array, std: jax.Array | float, key: jax.Array) -> Logits:
  """`logits`, clean and with Gaussian noise of standard deviation `std`."""
  return Logits(logits, logits + std * jax.random.normal(key, logits.shape), std)


@dataclasses.dataclass(frozen=True)
class Decision:
  """The decision on a batch before capacity drops anything, for losses and state updates.

  Attributes:
    logits: of the tokens.
    scores: float32 `[G, n, E]`.
    choices: int32 `[G, n, k]`, best first.
    gates: float32 `[G, n, k]`.
    wanted: bool `[G, n, k]`, the choices that take part.
    mask: bool `[G, n]`, False for padding.
  """

  logits: Logits
  scores: jax.Array
  choices: jax.Array
  gates: jax.Array
  wanted: jax.Array
  mask: jax.Array


class TopKRouter(Router):
  """Base class; a method overrides `logits`, `ranking`, `wanted`, `queue`, `losses` or `learn` where it differs.

  The config field `NAME_loss` is the weight of the loss `NAME`.
  """

  config: TopKConfig

  def __init__(self, config: TopKConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    """Logits of tokens `[G, n, d]`; noisy if there is a key, which only training passes."""
    logits = router_logits(tokens, self.kernel[...])
    return Logits(logits, logits)

  def ranking(self, logits: Logits, scores: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    """`[G, n, E]`, whose k highest per token are chosen; no gradient flows through it."""
    return scores

  def wanted(self, gates: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    """Bool `[G, n, k]`, the choices that queue for a slot."""
    return jnp.broadcast_to(mask[..., None], gates.shape)

  def queue(self, choices: jax.Array, gates: jax.Array, wanted: jax.Array) -> jax.Array:
    """int32 `[n, k]`, how many choices are ahead of each in its expert's queue, for one group."""
    return queues.queue_by_position(choices, wanted, self.num_experts)

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    """The losses by name, unweighted."""
    return {
      "balance": balance_loss(normalized(decision.scores), decision.choices, decision.mask),
      "z": router_z_loss(decision.logits.clean, decision.mask),
    }

  def learn(self, decision: Decision) -> None:
    """Updates the router's state after a training step."""

  def decide(self, inputs: RouterInput, key: jax.Array | None, *, training: bool) -> Decision:
    """Chooses experts for all tokens; with a key if random numbers are drawn."""
    first, second = (None, None) if key is None else jax.random.split(key)
    logits = self.logits(inputs.tokens, first)
    scores = expert_scores(logits.noisy, self.config.scores)
    ranking = self.ranking(logits, scores, inputs.mask, training=training)
    choices, gates = top_choices(scores, self.config.top_k, renormalize=self.config.renormalize, ranking=ranking)
    return Decision(logits, scores, choices, gates, self.wanted(gates, inputs.mask, second), inputs.mask)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    key = training_key(self, inputs) if training and self.config.draws else None
    decision = self.decide(inputs, key, training=training)
    routing = self._routing(decision, training)
    losses = self.losses(decision, training=training)
    total = sum((getattr(self.config, f"{name}_loss") * loss for name, loss in losses.items()), start=jnp.zeros(()))
    metrics = routing_metrics(routing, inputs.mask, normalized(decision.scores), asked=decision.wanted.sum())
    if training:
      self.learn(decision)
    return RouterOutput(routing, losses, total, metrics)

  def _routing(self, decision: Decision, training: bool) -> Routing:
    asked = decision.choices, decision.gates, decision.wanted
    if self.config.dropless:
      return jax.vmap(lambda c, g, w: queues.ragged_routing(c, g, w, self.num_experts))(*asked)
    capacity = token_choice_capacity(decision.mask.shape[1], self.num_experts, self.config.factor(training))

    def one_group(choices: jax.Array, gates: jax.Array, wanted: jax.Array) -> SlotRouting:
      ahead = self.queue(choices, gates, wanted)
      return queues.slot_routing(choices, gates, wanted, ahead, self.num_experts, capacity)

    return jax.vmap(one_group)(*asked)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`free`: int32 `[batch, E]`, slots left; empty for a dropless router."""
    if self.config.dropless:
      return {}
    capacity = token_choice_capacity(length, self.num_experts, self.config.factor(training=False))
    return {"free": jnp.full((batch, self.num_experts), capacity, jnp.int32)}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """See the base class. The routing is ragged, with dropped choices in its tail; losses and metrics are left out."""
    if not self.config.is_causal(training=False):
      return super().decode(inputs, state)
    decision = self.decide(inputs, None, training=False)
    choices, kept = decision.choices[0], decision.wanted[0]
    if state:
      kept = kept & (jnp.take_along_axis(state["free"], choices, axis=1) > 0)
      state = {"free": state["free"] - queues.wanted_experts(choices, kept, self.num_experts)}
    routing: RaggedRouting = queues.ragged_routing(choices, decision.gates[0], kept, self.num_experts)
    routing = jax.tree.map(lambda leaf: leaf[None], routing)
    return RouterOutput(routing, {}, jnp.zeros(()), {}), state
