"""Token choice with fixed rules: Switch, GShard, GLaM, V-MoE, dropless and their relatives.

One implementation; the published methods are its options. What differs between them is which of a token's choices an
expert with too few slots serves (`order`), what is random in training, and which losses keep the experts balanced.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe.routing import queues as assignments
from moe.routing.losses import importance_loss, load_loss
from moe.routing.methods.token_choice_options import (
  BatchPriorityOptions,
  DroplessOptions,
  GLaMOptions,
  GShardOptions,
  SwitchOptions,
  TokenChoiceOptions,
)
from moe.routing.router import RouterConfig, Site, register
from moe.routing.top_k import Decision, Logits, TopKRouter, check_load_loss, expert_scores, normalized, with_noise


def second_by_chance(gates: jax.Array, key: jax.Array) -> jax.Array:
  """Bool `[..., 2]`: the first choice always, the second with probability min(1, 2 g_2). GShard, section 2.2.

  Args:
    gates: float32 `[..., 2]`; with renormalised ones 2 g_2 is a probability, which is why the factor is 2.
    key: PRNG key.
  """
  chosen = jax.random.uniform(key, gates.shape[:-1]) < 2.0 * jax.lax.stop_gradient(gates[..., 1])
  return jnp.stack([jnp.ones_like(chosen), chosen], axis=-1)


def jittered(tokens: jax.Array, jitter: float, key: jax.Array) -> jax.Array:
  """Float32 tokens with every coordinate multiplied by uniform(1 - jitter, 1 + jitter)."""
  return tokens.astype(jnp.float32) * jax.random.uniform(key, tokens.shape, jnp.float32, 1 - jitter, 1 + jitter)


@register("token_choice")
class TokenChoice(TopKRouter):
  """Token choice with any combination of its options."""

  Options = TokenChoiceOptions
  options: TokenChoiceOptions
  paper = "a frame of options; the published methods have names of their own"

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
  def check(cls, options: TokenChoiceOptions, site: Site, batch: int, length: int) -> None:
    super().check(options, site, batch, length)
    check_load_loss(options.load_loss, options.top_k, site.num_experts)

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    if key is None:
      return super().logits(tokens, key)
    of_jitter, of_noise = jax.random.split(key)
    if self.options.jitter > 0:
      tokens = jittered(tokens, self.options.jitter, of_jitter)
    logits = super().logits(tokens, None)
    return with_noise(logits.clean, self.options.noise / self.num_experts, of_noise) if self.options.noise else logits

  def wanted(self, gates: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    everyone = super().wanted(gates, mask, key)
    by_chance = self.options.second_expert == "random" and key is not None
    return everyone & second_by_chance(gates, key) if by_chance else everyone

  def places(self, choices: jax.Array, gates: jax.Array, wanted: jax.Array) -> jax.Array:
    if self.options.order == "sequence":
      return super().places(choices, gates, wanted)
    return assignments.places_by_priority(choices, wanted, gates[:, 0], self.num_experts)

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    losses, logits = super().losses(decision, training=training), decision.logits
    if self.options.importance_loss:
      losses["importance"] = importance_loss(
        normalized(expert_scores(logits.clean, self.options.scores)), decision.mask
      )
    if self.options.load_loss and training:
      losses["load"] = load_loss(logits.clean, logits.noisy, self.options.top_k, logits.noise_std, decision.mask)
    return losses


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


@register("batch_priority")
class BatchPriority(TokenChoice):
  """V-MoE: token choice with the options of its paper. Sees the whole group, so it is for encoders."""

  Options = BatchPriorityOptions
  paper = "Riquelme et al. 2021 (V-MoE), arXiv 2106.05974"


@register("dropless")
class Dropless(TokenChoice):
  """Dropless token choice: an expert takes as many tokens as want it."""

  Options = DroplessOptions
  paper = "Gale et al. 2022 (MegaBlocks), arXiv 2211.15841"
