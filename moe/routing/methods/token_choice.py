"""Token choice with fixed rules: Switch, GShard, GLaM, V-MoE, dropless and their relatives.

One implementation; the published methods are its configs. They differ in whom an expert with too few slots serves
(`order`), in what is random in training, and in the losses that balance the experts. A causal queue is the default
here, so that decoders can use it: only `gshard` and `batch_priority` queue as published. Papers on decoders seldom say
how they queue, and their code (GLaM's is GShard's) is not causal.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.losses import importance_loss, load_loss, normalized
from moe.routing.router import RouterConfig, Site
from moe.routing.top_k import (
  Decision,
  Logits,
  Order,
  TopKConfig,
  TopKRouter,
  check_load_loss,
  expert_scores,
  with_noise,
)


def second_by_chance(gates: jax.Array, threshold: float, key: jax.Array) -> jax.Array:
  """Bool `[..., 2]`: the first choice always, the second with probability min(1, g_2 / threshold). GShard, section 2.2.

  Args:
    gates: float32 `[..., 2]`.
    threshold: from which g_2 on the second is certain; renormalised, g_2 is at most 1 / 2, which is GShard's.
    key: PRNG key.
  """
  chosen = jax.random.uniform(key, gates.shape[:-1]) * threshold < jax.lax.stop_gradient(gates[..., 1])
  return jnp.stack([jnp.ones_like(chosen), chosen], axis=-1)


def jittered(tokens: jax.Array, jitter: float, key: jax.Array) -> jax.Array:
  """Float32 tokens with every coordinate multiplied by uniform(1 - jitter, 1 + jitter)."""
  return tokens.astype(jnp.float32) * jax.random.uniform(key, tokens.shape, jnp.float32, 1 - jitter, 1 + jitter)


@dataclasses.dataclass(frozen=True)
class TokenChoiceConfig(TopKConfig, name="token_choice"):
  """Token choice with fixed rules; adds fields to those of every top-k router.

  Attributes:
    second_expert: "all", or "random": in training the second is kept with probability min(1, g_2 / second_threshold).
    second_threshold: 1 / 2 in GShard, 0.2 in ST-MoE (Zoph et al. 2022).
    jitter: in training the router's input is multiplied by uniform(1 - jitter, 1 + jitter).
    noise: in training the logits get Gaussian noise of standard deviation noise / E.
    importance_loss: weight of Shazeer et al.'s importance loss, on the noise-free scores of all experts.
    load_loss: weight of Shazeer et al.'s load loss; needs noise, and applies in training only.
    load_bar: what an expert must beat to count as chosen there: the k-th highest of the "others", as in Shazeer et al.
      and V-MoE's paper, or of "all" with itself, as in V-MoE's code.
  """

  paper = "the common form; published settings of it have names of their own"

  capacity_factor: float | None = 2.0
  second_expert: Literal["all", "random"] = "all"
  second_threshold: float = 0.5
  jitter: float = 0.0
  noise: float = 0.0
  balance_loss: float = 0.01
  importance_loss: float = 0.0
  load_loss: float = 0.0
  load_bar: Literal["others", "all"] = "others"

  def __post_init__(self):
    super().__post_init__()
    require(
      self.second_expert == "all" or self.top_k == 2,
      "second_expert",
      self.second_expert,
      "expected 'all' unless top_k = 2",
    )
    threshold = self.second_threshold
    require(0 < threshold <= 1, "second_threshold", threshold, "expected more than 0 and at most 1")
    require(0 <= self.jitter < 1, "jitter", self.jitter, "expected at least 0 and less than 1")
    require(self.noise >= 0, "noise", self.noise, "expected at least 0")
    require(
      self.load_loss == 0 or self.noise > 0,
      "load_loss",
      self.load_loss,
      "expected 0 unless noise > 0, which smooths the load",
    )

  @property
  def draws(self) -> bool:
    return super().draws or self.jitter > 0 or self.noise > 0 or self.second_expert == "random"

  def make(self, site: Site, rngs: nnx.Rngs) -> "TokenChoice":
    return TokenChoice(self, site, rngs=rngs)

  def causal_twin(self) -> RouterConfig:
    return self._causal(TokenChoiceConfig)

  def _causal(self, cls: "type[TokenChoiceConfig]") -> RouterConfig:
    """The same options, but for the order of service, under the name of `cls`."""
    options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return cls(**(options | {"order": "token", "group_size": 0}))

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    check_load_loss(self.load_loss, self.top_k, site.num_experts)


@dataclasses.dataclass(frozen=True)
class SwitchConfig(TokenChoiceConfig, name="switch"):
  """Fedus et al. 2021, arXiv 2101.03961: top-1 with input jitter; capacity factors 1.25 and 2 as in its public code.

  A group is one sequence; in the public code it has about 8,192 tokens of several, which `group_size` gives here.
  """

  paper = "Fedus et al. 2021, arXiv 2101.03961"

  top_k: int = 1
  capacity_factor: float | None = 1.25
  eval_capacity_factor: float | None = 2.0
  jitter: float = 0.01


@dataclasses.dataclass(frozen=True)
class CausalGShardConfig(TokenChoiceConfig, name="causal_gshard"):
  """GShard for decoders: its gates and chances, with each sequence's slots filled by token."""

  paper = "Lepikhin et al. 2020, arXiv 2006.16668, with a causal queue"

  renormalize: bool = True
  second_expert: Literal["all", "random"] = "random"


@dataclasses.dataclass(frozen=True)
class GShardConfig(CausalGShardConfig, name="gshard"):
  """Lepikhin et al. 2020, arXiv 2006.16668: top-2, the second by chance, gates renormalised, capacity 2 n / E.

  First choices of a group queue before second ones, and only they count in the balance loss. The paper's groups are a
  device's tokens; flaxformer's have about 4,096, of several sequences: set `group_size`, since the default is the whole
  batch.
  """

  paper = "Lepikhin et al. 2020, arXiv 2006.16668"

  order: Order = "choice"
  balance_over: Literal["all", "first"] = "first"

  def causal_twin(self) -> RouterConfig:
    return self._causal(CausalGShardConfig)


@dataclasses.dataclass(frozen=True)
class GLaMConfig(TokenChoiceConfig, name="glam"):
  """Du et al. 2021, arXiv 2112.06905: top-2, both experts always, gates renormalised.

  With the causal queue; `order="choice"` is that of GShard's code, on which the paper builds.
  """

  paper = "Du et al. 2021, arXiv 2112.06905"

  renormalize: bool = True


@dataclasses.dataclass(frozen=True)
class BatchPriorityConfig(TokenChoiceConfig, name="batch_priority"):
  """Riquelme et al. 2021 (V-MoE), arXiv 2106.05974: top-2, noise of standard deviation 1 / E, slots by priority.

  The paper's capacity ratio 1.05 is multiplied by top_k here, where 1 means one expert per token. The public code also
  has `slots_multiple=4` and `load_bar="all"`, and `order="choice"` unless it is asked for priorities.
  """

  paper = "Riquelme et al. 2021 (V-MoE), arXiv 2106.05974"

  capacity_factor: float | None = 2.1
  order: Order = "batch_priority"
  noise: float = 1.0
  balance_loss: float = 0.0
  importance_loss: float = 0.005
  load_loss: float = 0.005


@dataclasses.dataclass(frozen=True)
class DroplessConfig(TokenChoiceConfig, name="dropless"):
  """Gale et al. 2022 (MegaBlocks), arXiv 2211.15841: top-2 without a capacity."""

  paper = "Gale et al. 2022 (MegaBlocks), arXiv 2211.15841"

  capacity_factor: float | None = None


class TokenChoice(TopKRouter):
  """Token choice with any combination of its options."""

  config: TokenChoiceConfig

  def logits(self, tokens: jax.Array, key: jax.Array | None) -> Logits:
    if key is None:
      return super().logits(tokens, key)
    of_jitter, of_noise = jax.random.split(key)
    if self.config.jitter > 0:
      tokens = jittered(tokens, self.config.jitter, of_jitter)
    logits = super().logits(tokens, None)
    return with_noise(logits.clean, self.config.noise / self.num_experts, of_noise) if self.config.noise else logits

  def wanted(self, gates: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    everyone = super().wanted(gates, mask, key)
    by_chance = self.config.second_expert == "random" and key is not None
    return everyone & second_by_chance(gates, self.config.second_threshold, key) if by_chance else everyone

  def losses(self, decision: Decision, *, training: bool) -> dict[str, jax.Array]:
    losses, logits = super().losses(decision, training=training), decision.logits
    if self.config.importance_loss:
      losses["importance"] = importance_loss(normalized(expert_scores(logits.clean, self.config.scores)), decision.mask)
    if self.config.load_loss and training:
      k, bar = self.config.top_k, self.config.load_bar
      losses["load"] = load_loss(logits.clean, logits.noisy, k, logits.noise_std, decision.mask, bar)
    return losses
