"""Token choice: every token goes to the k experts it scores highest. Switch, GShard, GLaM and their relatives.

One implementation; the published methods are its options. What differs between them is which of a token's choices an
expert with too few slots serves (`order`), and what is random in training.

The published codes queue all first choices of a group before any second choice, over sequences cut together. That lets
a later token push out an earlier one's second choice, and one sequence another's (6% of outputs, measured). Here the
order "sequence", the default of all, counts capacity per sequence, by position, the choices of a token together: it is
causal, independent of the batch, and the same when decoding step by step.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import assignments
from moe.routing.capacity import token_choice_capacity
from moe.routing.groups import Groups, checked_groups
from moe.routing.losses import balance_loss, importance_loss, load_loss, router_z_loss
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site, register
from moe.routing.scores import router_kernel, router_logits
from moe.routing.token_choice_options import GLaMOptions, GShardOptions, SwitchOptions, TokenChoiceOptions
from moe.routing.types import RaggedRouting, RouterInput, RouterOutput, Routing, SlotRouting


def top_choices(probs: jax.Array, k: int, *, renormalize: bool) -> tuple[jax.Array, jax.Array]:
  """The experts `[..., k]` (int32, best first, ties to the lower index) of each token and their gates `[..., k]`.

  The gradient flows through the gates alone. Renormalised gates are divided by their sum over all k choices, before
  any is dropped, as in GShard's algorithm 1: what a token loses with a dropped choice is not made up by the others.

  Args:
    probs: float32 `[..., n, E]`.
    k: experts per token.
    renormalize: whether the k gates sum to 1.
  """
  choices = jax.lax.top_k(jax.lax.stop_gradient(probs), k)[1]
  gates = jnp.take_along_axis(probs, choices, axis=-1)
  return choices, gates / gates.sum(-1, keepdims=True) if renormalize else gates


def second_by_chance(gates: jax.Array, key: jax.Array) -> jax.Array:
  """Bool `[..., 2]`: the first choice always, the second with probability min(1, 2 g_2). GShard, section 2.2.

  Args:
    gates: float32 `[..., 2]`; with renormalised ones 2 g_2 is a probability, which is why the factor is 2.
    key: PRNG key.
  """
  chosen = jax.random.uniform(key, gates.shape[:-1]) < 2.0 * jax.lax.stop_gradient(gates[..., 1])
  return jnp.stack([jnp.ones_like(chosen), chosen], axis=-1)


@register("token_choice")
class TokenChoice(Router):
  """Token choice with any combination of its options."""

  Options = TokenChoiceOptions
  paper = "a frame of options; V-MoE is Riquelme et al. 2021, arXiv 2106.05974"

  def __init__(self, options: TokenChoiceOptions, site: Site, *, rngs: nnx.Rngs):
    self.options, self.num_experts = options, site.num_experts
    self.kernel = router_kernel(site, rngs)

  @classmethod
  def is_causal(cls, options: TokenChoiceOptions, *, training: bool) -> bool:
    return options.dropless or options.queues_by_sequence

  @classmethod
  def is_batch_independent(cls, options: TokenChoiceOptions, length: int, *, training: bool) -> bool:
    return cls.is_causal(options, training=training) or (options.group_size > 0 and length % options.group_size == 0)

  @classmethod
  def causal_twin(cls, options: TokenChoiceOptions) -> RouterConfig:
    """The same router with capacity counted by position instead of by priority."""
    return RouterConfig("token_choice", dataclasses.replace(options, order="sequence", group_size=0))

  @classmethod
  def groups(cls, options: TokenChoiceOptions, batch: int, length: int) -> Groups:
    return Groups(length) if options.queues_by_sequence else checked_groups(options.group_size, batch, length)

  @classmethod
  def check(cls, options: TokenChoiceOptions, site: Site, batch: int, length: int) -> None:
    super().check(options, site, batch, length)
    experts = site.num_experts
    require(options.top_k <= experts, "top_k", options.top_k, f"expected at most the {experts} experts there are")
    smooth = options.load_loss == 0 or options.top_k < experts
    require(smooth, "load_loss", options.load_loss, f"needs top_k < {experts} experts: the load is constant")

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    random = training and self.options.draws
    if random and inputs.key is None:
      raise ValueError(f"{type(self).__name__} draws random numbers in training, but RouterInput.key is None")
    keys = jax.random.split(inputs.key, 3) if random else (None,) * 3

    logits = router_logits(self._jittered(inputs.tokens, keys[0]), self.kernel[...])
    noisy_logits = self._noisy(logits, keys[1])
    probs = jax.nn.softmax(noisy_logits)
    choices, gates = top_choices(probs, self.options.top_k, renormalize=self.options.renormalize)
    wanted = jnp.broadcast_to(inputs.mask[..., None], choices.shape)
    if random and self.options.second_expert == "random":
      wanted = wanted & second_by_chance(gates, keys[2])

    routing = self._routing(choices, gates, wanted, training)
    losses, total = self._losses(logits, noisy_logits, probs, choices, inputs.mask, training)
    metrics = routing_metrics(routing, inputs.mask, probs, asked=wanted.sum())
    return RouterOutput(routing, losses, total, metrics)

  def _jittered(self, tokens: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None or self.options.jitter == 0:
      return tokens
    low, high = 1 - self.options.jitter, 1 + self.options.jitter
    return tokens.astype(jnp.float32) * jax.random.uniform(key, tokens.shape, jnp.float32, low, high)

  def _noisy(self, logits: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is None or self.options.noise == 0:
      return logits
    return logits + self._noise_std * jax.random.normal(key, logits.shape)

  @property
  def _noise_std(self) -> float:
    return self.options.noise / self.num_experts

  def _routing(self, choices: jax.Array, gates: jax.Array, wanted: jax.Array, training: bool) -> Routing:
    if self.options.dropless:
      return jax.vmap(lambda c, g, w: assignments.ragged_routing(c, g, w, self.num_experts))(choices, gates, wanted)
    capacity = token_choice_capacity(choices.shape[1], self.num_experts, self.options.factor(training))

    def one_group(choices: jax.Array, gates: jax.Array, wanted: jax.Array) -> SlotRouting:
      if self.options.order == "sequence":
        place = assignments.places_in_order(choices, wanted, self.num_experts)
      else:
        place = assignments.places_by_priority(choices, wanted, gates[:, 0], self.num_experts)
      return assignments.slot_routing(choices, gates, wanted, place, self.num_experts, capacity)

    return jax.vmap(one_group)(choices, gates, wanted)

  def _losses(self, logits, noisy_logits, probs, choices, mask, training) -> tuple[dict[str, jax.Array], jax.Array]:
    """The losses by name, and their weighted sum."""
    options = self.options
    losses = {"balance": balance_loss(probs, choices, mask), "z": router_z_loss(logits, mask)}
    total = options.balance_loss * losses["balance"] + options.z_loss * losses["z"]
    if options.importance_loss:
      losses["importance"] = importance_loss(jax.nn.softmax(logits), mask)
      total += options.importance_loss * losses["importance"]
    if options.load_loss and training:
      losses["load"] = load_loss(logits, noisy_logits, options.top_k, self._noise_std, mask)
      total += options.load_loss * losses["load"]
    return losses, total

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`free`: int32 `[batch, E]`, slots left; for a dropless router nothing."""
    if self.options.dropless:
      return {}
    capacity = token_choice_capacity(length, self.num_experts, self.options.factor(training=False))
    return {"free": jnp.full((batch, self.num_experts), capacity, jnp.int32)}

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """As the base class says. The routing is ragged, dropped choices in its tail; losses and metrics are left out."""
    if not self.is_causal(self.options, training=False):
      return super().decode(inputs, state)
    probs = jax.nn.softmax(router_logits(inputs.tokens[0], self.kernel[...]))
    choices, gates = top_choices(probs, self.options.top_k, renormalize=self.options.renormalize)
    kept = jnp.broadcast_to(inputs.mask[0][:, None], choices.shape)
    if state:
      kept = kept & (jnp.take_along_axis(state["free"], choices, axis=1) > 0)
      state = {"free": state["free"] - assignments.takes_of(choices, kept, self.num_experts)}
    routing: RaggedRouting = assignments.ragged_routing(choices, gates, kept, self.num_experts)
    routing = jax.tree.map(lambda leaf: leaf[None], routing)
    return RouterOutput(routing, {}, jnp.zeros(()), {}), state


@register("switch")
class Switch(TokenChoice):
  """Switch: token choice with the options of its paper."""

  Options = SwitchOptions
  paper = "Fedus et al. 2021, arXiv 2101.03961"


@register("gshard")
class GShard(TokenChoice):
  """GShard: token choice with the options of its paper."""

  Options = GShardOptions
  paper = "Lepikhin et al. 2020, arXiv 2006.16668"


@register("glam")
class GLaM(TokenChoice):
  """GLaM: token choice with the options of its paper."""

  Options = GLaMOptions
  paper = "Du et al. 2021, arXiv 2112.06905"
