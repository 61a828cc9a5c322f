"""Every token goes to its k highest-ranked experts: the base of the token-choice family.

GShard, and most published code after it, queues all first choices of a group before any second choice, across
concatenated sequences. Few first choices are then dropped, but a later token can displace an earlier token's second
choice, and one sequence another's. By default slots are counted per sequence and by position, all choices of a token
together: causal, independent of the batch, and the same when decoding step by step. The price is that later tokens lose
first choices to earlier tokens' second ones. `order` chooses.
"""

import dataclasses
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import queues
from moe.routing.capacity import CapacityConfig, token_choice_capacity
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.losses import balance_loss, normalized, router_z_loss
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site
from moe.routing.sampling import training_key
from moe.routing.scores import router_bias, router_kernel, router_logits
from moe.routing.solvers.highest import highest
from moe.routing.types import RaggedRouting, RouterInput, RouterOutput, Routing

Order = Literal["token", "choice", "batch_priority", "score", "random"]


def expert_scores(logits: jax.Array, kind: Literal["softmax", "sigmoid"]) -> jax.Array:
  """`[..., E]`, in (0, 1): the softmax over experts, or the sigmoid of each logit."""
  return jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits)


def top_choices(
  scores: jax.Array, k: int, *, renormalize: bool, ranking: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Each token's experts `[..., k]` (int32, best first, ties to the lower index) and their gates `[..., k]`.

  The gradient flows through the gates only. Renormalised gates are divided by their sum over all k choices, before any
  is dropped, as in GShard's algorithm 1.

  Args:
    scores: float32 `[..., n, E]`, from which the gates are taken.
    k: experts per token.
    renormalize: whether the k gates sum to 1. Softmax gates then equal the softmax over only the k chosen logits.
    ranking: float32 `[..., n, E]`, whose k highest are chosen; None for the scores.
  """
  choices = highest(jax.lax.stop_gradient(scores if ranking is None else ranking), k)[1]
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
    slots: a fixed number per expert and group, such as Hugging Face's `expert_capacity`; the factors and the next two
      fields then have no effect.
    least_slots: fewest slots per expert, if there are enough tokens for them; 4 in flaxformer.
    slots_multiple: more than 1 rounds the slots up to a multiple of it, as V-MoE does, with 4.
    order: who gets the slots where there are too few; without effect if dropless.

      - "token": earlier tokens first, each with all its choices; causal.
      - "choice": all first choices of the group by position, then all second ones, as in GShard, flaxformer, Tutel,
        DeepSpeed's top-2, ST-MoE and V-MoE. Causal for top_k = 1 only, where it is the same as "token".
      - "batch_priority": as "choice", but the tokens with the highest first scores first (V-MoE's option of that name).
      - "score": each expert serves the choices that score highest with it, first or not (DeepSpeed's "probs").
      - "random": choices in random order in training, so that no position is favoured; "choice" in evaluation.

    group_size: tokens per group, across sequences; 0 for one sequence if slots are filled by token, else for the whole
      batch.
    scores: how logits become scores; the gates are the scores of the chosen experts.
    renormalize: whether the gates of a token's k choices sum to 1.
    renormalize_over: the choices that sum to 1: "all" k, before any is dropped, so that others do not make up for a
      dropped one (GShard, flaxformer); or those "kept", so that the gate of a single one is 1 (DeepSpeed, praxis).
    router_bias: whether the router's linear layer has a bias per expert.
    balance_loss: weight of Switch's load balancing loss. Sigmoid scores are first divided by their sum over the
      experts, as in DeepSeek-V3 (arXiv 2412.19437, eq. 17-20).
    balance_scope: the tokens that are balanced with each other: those of a "group", who share slots; the whole "batch"
      (of each micro-batch, if training accumulates), so that sequences may specialise (Qiu et al. 2025); or a
      "sequence", as in DeepSeek-V3. That is a row of the batch, with all the examples packed into it.
    balance_over: the choices that count: "all" k, or only the "first" (GShard, V-MoE, Tutel, DeepSpeed, ST-MoE).
    z_loss: weight of the router z-loss.
  """

  top_k: int = 2
  slots: int | None = None
  least_slots: int = 1
  slots_multiple: int = 1
  order: Order = "token"
  group_size: int = 0
  scores: Literal["softmax", "sigmoid"] = "softmax"
  renormalize: bool = False
  renormalize_over: Literal["all", "kept"] = "all"
  router_bias: bool = False
  balance_loss: float = 0.0
  balance_scope: Literal["group", "batch", "sequence"] = "group"
  balance_over: Literal["all", "first"] = "all"
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.top_k >= 1, "top_k", self.top_k, "expected at least 1 expert per token")
    check_group_size(self.group_size, "one sequence if slots are filled by token, else the whole batch")
    require(
      self.top_k > 1 or not self.renormalize,
      "renormalize",
      self.renormalize,
      "expected False for top_k = 1: its only gate would always be 1 and the router would learn nothing",
    )
    over = self.renormalize_over
    require(over == "all" or self.renormalize, "renormalize_over", over, "expected 'all' unless renormalize = True")
    for name in ("slots", "least_slots", "slots_multiple"):
      value = getattr(self, name)
      require(value is None or value >= 1, name, value, "expected at least 1")
      default = TopKConfig.__dataclass_fields__[name].default
      require(
        value == default or not self.dropless, name, value, f"expected {default}: capacity_factor = None means dropless"
      )
    for field in dataclasses.fields(self):
      if field.name.endswith("_loss"):
        require(getattr(self, field.name) >= 0, field.name, getattr(self, field.name), "expected at least 0")

  @property
  def dropless(self) -> bool:
    return self.capacity_factor is None

  @property
  def queues_by_sequence(self) -> bool:
    """Whether a group is one sequence, whatever its length."""
    return not self.dropless and self.order == "token" and self.group_size == 0

  @property
  def draws(self) -> bool:
    """Whether training draws random numbers."""
    return not self.dropless and self.order == "random"

  def is_causal(self, *, training: bool) -> bool:
    return self.dropless or self.order == "token" or (self.order == "choice" and self.top_k == 1)

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return self.dropless or self.queues_by_sequence or within_sequences(self.group_size, length)

  def causal_twin(self) -> RouterConfig:
    """The same router with each sequence's slots filled by token."""
    return dataclasses.replace(self, order="token", group_size=0)

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return (
      Groups(length) if self.queues_by_sequence else checked_groups(self.group_size, batch, length, training=training)
    )

  def slots_per_expert(self, group: int, num_experts: int | Fraction, *, training: bool) -> int:
    """C, for a group of `group` tokens; not for a dropless router."""
    if self.slots is not None:
      return min(self.slots, group)
    least, multiple = self.least_slots, self.slots_multiple
    return token_choice_capacity(group, num_experts, self.factor(training), least=least, multiple=multiple)

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
    length: T, tokens of a row of the batch, or None.
  """

  logits: Logits
  scores: jax.Array
  choices: jax.Array
  gates: jax.Array
  wanted: jax.Array
  mask: jax.Array
  length: int | None


class TopKRouter(Router):
  """Base class; a method overrides `logits`, `ranking`, `wanted`, `losses` or `seen` where it differs.

  The config field `NAME_loss` is the weight of the loss `NAME`. A method with Z experts that cost nothing scores them
  after the E that are routed to: where it has some, read E + Z for E in the shapes of logits, scores and ranking.

  Attributes:
    num_free: Z.
  """

  config: TopKConfig

  def __init__(self, config: TopKConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.num_free = sum(config.free_experts or ())
    self.kernel = router_kernel(site, rngs)
    self.kernel_bias = router_bias(site, rngs) if config.router_bias else None

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    """Logits of tokens `[G, n, d]`; noisy if there is a key, which only training passes."""
    logits = router_logits(tokens, self.kernel[...])
    logits = logits if self.kernel_bias is None else logits + self.kernel_bias[...]
    return Logits(logits, logits)

  def ranking(self, logits: Logits, scores: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    """`[G, n, E]`, whose k highest per token are chosen; no gradient flows through it."""
    return scores

  def wanted(self, gates: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    """Bool `[G, n, k]`, the choices that queue for a slot."""
    return jnp.broadcast_to(mask[..., None], gates.shape)

  def room(self, experts: jax.Array, group: int, *, training: bool) -> jax.Array | int:
    """Slots of each of these experts in a group of `group` tokens; one number where all have as many."""
    return self.config.slots_per_expert(group, self.num_experts, training=training)

  def free_gates(self, choices: jax.Array, gates: jax.Array, kept: jax.Array) -> jax.Array | None:
    """`[..., n, Z]`, the gates of kept choices of experts that cost nothing; all arguments are `[..., n, k]`."""
    return None

  def balanced(self, scores: jax.Array) -> jax.Array:
    """`[G, n, E]`, the p of the balance loss."""
    return normalized(scores)

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    """The losses by name, unweighted."""
    config, mask = self.config, decision.mask
    counted = decision.choices if config.balance_over == "all" else decision.choices[..., :1]
    if config.balance_scope == "sequence" and decision.length is None:
      raise ValueError("RouterInput.length = None: expected the tokens of a row, since balance_scope = 'sequence'")
    together = {"group": None, "batch": mask.size, "sequence": decision.length}[config.balance_scope]
    return {
      "balance": balance_loss(self.balanced(decision.scores), counted, mask, together=together),
      "z": router_z_loss(decision.logits.clean, mask),
    }

  def seen(self, decision: Decision) -> dict[str, jax.Array]:
    """What `learn` moves the state by, in training."""
    return {}

  def decide(self, inputs: RouterInput, key: jax.Array | None, *, training: bool) -> Decision:
    """Chooses experts for all tokens; with a key if random numbers are drawn."""
    first, second = (None, None) if key is None else jax.random.split(key)
    logits = self.logits(inputs.tokens, first)
    scores = expert_scores(logits.noisy, self.config.scores)
    ranking = self.ranking(logits, scores, inputs.mask, training=training)
    choices, gates = top_choices(scores, self.config.top_k, renormalize=self.config.renormalize, ranking=ranking)
    return Decision(logits, scores, choices, gates, self.wanted(gates, inputs.mask, second), inputs.mask, inputs.length)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    key = training_key(self, inputs) if training and self.config.draws else None
    decision = self.decide(inputs, key, training=training)
    routing, free = self._routing(decision, key, training=training)
    losses = self.losses(decision, training=training)
    weights = {name: getattr(self.config, f"{name}_loss") for name in losses}
    # A loss of weight 0 is for the metrics alone: its gradient, if it overflows, must not make the total NaN.
    total = sum((weight * losses[name] for name, weight in weights.items() if weight), start=jnp.zeros(()))
    asked = (decision.wanted & (decision.choices < self.num_experts)).sum()
    metrics = routing_metrics(routing, inputs.mask, normalized(decision.scores), asked=asked, free=free)
    seen = self.seen(decision) if training else {}
    return RouterOutput(routing, losses, total, metrics, seen=seen, free=free)

  def _routing(self, decision: Decision, key: jax.Array | None, *, training: bool) -> tuple[Routing, jax.Array | None]:
    """The routing, and the `free_gates`."""
    choices, kept, experts, group = decision.choices, decision.wanted, self.num_experts, decision.mask.shape[1]
    ahead = None if self.config.dropless else self._ahead(decision, key, training=training)
    if ahead is not None:
      kept = kept & (ahead < self.room(choices, group, training=training))
    gates = self._gates_of_kept(decision.gates, kept)
    routed, free = kept & (choices < experts), self.free_gates(choices, gates, kept)
    if ahead is None:
      return jax.vmap(lambda c, g, r: queues.ragged_routing(c, g, r, experts))(choices, gates, routed), free
    capacity = self.config.slots_per_expert(group, experts, training=training)
    slots = jax.vmap(lambda c, g, r, a: queues.slot_routing(c, g, r, a, experts, capacity))
    return slots(choices, gates, routed, ahead), free

  def _gates_of_kept(self, gates: jax.Array, kept: jax.Array) -> jax.Array:
    """The gates `[..., k]`; if asked, divided by the sum of those that are `kept`."""
    return normalized(jnp.where(kept, gates, 0.0)) if self.config.renormalize_over == "kept" else gates

  def _ahead(self, decision: Decision, key: jax.Array | None, *, training: bool) -> jax.Array:
    """int32 `[G, n, k]`, how many choices are ahead of each in its expert's queue."""
    order, choices, wanted = self.config.order, decision.choices, decision.wanted
    if order == "random" and training:
      priority = jax.random.uniform(jax.random.fold_in(key, 2), choices.shape)
    else:
      priority = jax.lax.stop_gradient(jnp.take_along_axis(decision.scores, choices, axis=-1))
    by_choice, experts = order == "choice" or (order == "random" and not training), self.num_experts + self.num_free

    def one_group(choices: jax.Array, wanted: jax.Array, priority: jax.Array) -> jax.Array:
      if order == "token":
        return queues.queue_by_position(choices, wanted, experts)
      if by_choice:
        return queues.queue_by_choice(choices, wanted, experts)
      if order == "batch_priority":
        return queues.queue_by_priority(choices, wanted, priority[:, 0], experts)
      return queues.queue_each_by_priority(choices, wanted, priority, experts)

    return jax.vmap(one_group)(choices, wanted, priority)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`free`: int32 `[batch, E + Z]`, slots left; empty for a dropless router.

    If a row is longer than a group, also the `slots` of a group, int32 `[batch, E + Z]`, and int32 `[batch]`: tokens of
    a `group`, and tokens `seen` of the row.
    """
    if self.config.dropless:
      return {}
    group = self.config.groups(1, length, training=False).size
    experts = jnp.arange(self.num_experts + self.num_free)
    slots = jnp.full((batch, len(experts)), self.room(experts, group, training=False), jnp.int32)
    if group == length:
      return {"free": slots}
    return {"free": slots, "slots": slots, "group": jnp.full(batch, group), "seen": jnp.zeros(batch, jnp.int32)}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """See the base class. The routing is ragged, with dropped choices in its tail; losses and metrics are left out."""
    if not self.config.is_causal(training=False):
      return super().decode(inputs, state)
    decision = self.decide(inputs, None, training=False)
    choices, kept = decision.choices[0], decision.wanted[0]
    if state:
      free = state["free"]
      if "group" in state:
        begins = state["seen"] % state["group"] == 0
        free, state = jnp.where(begins[:, None], state["slots"], free), state | {"seen": state["seen"] + 1}
      kept = kept & (jnp.take_along_axis(free, choices, axis=1) > 0)
      state = state | {"free": free - queues.wanted_experts(choices, kept, free.shape[1])}
    gates, routed = self._gates_of_kept(decision.gates[0], kept), kept & (choices < self.num_experts)
    routing: RaggedRouting = queues.ragged_routing(choices, gates, routed, self.num_experts)
    routing, beside = jax.tree.map(lambda leaf: leaf[None], (routing, self.free_gates(choices, gates, kept)))
    return RouterOutput(routing, {}, jnp.zeros(()), {}, free=beside), state
