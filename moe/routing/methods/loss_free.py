"""Balance without a loss: a bias per expert, driven by the loads of past batches, affects the choice but not the gates.

A token's choice depends on the loads of earlier batches only, so it is causal; the current batch's would leak.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing import queues
from moe.routing.router import RouterState, Site, step_mean
from moe.routing.solvers.highest import highest
from moe.routing.top_k import Decision, Logits, TopKConfig, TopKRouter


def bias_by_sign(bias: jax.Array, load: jax.Array, rate: float) -> jax.Array:
  """The bias `[E]` after one batch: `rate` higher for experts below the mean load, lower for those above it.

  Wang et al. 2024, algorithm 1.

  Args:
    bias: float32 `[E]`.
    load: `[E]`, tokens that chose each expert.
    rate: u.
  """
  return bias + rate * jnp.sign(load.mean() - load)


def bias_by_quantile(bias: jax.Array, scores: jax.Array, mask: jax.Array, k: int) -> jax.Array:
  """The bias `[E]` with which every expert takes equally many of these tokens if the tokens' prices stay fixed.

  Su 2026, https://kexue.fm/archives/11619; the variant with at most that many is Sun 2025, arXiv 2502.15451.

  The balanced assignment maximises the sum of the chosen scores with k experts per token and N k / E tokens per expert.
  Its linear program has a price for each token (alpha) and each expert (minus the bias), and a pair is chosen if its
  score exceeds their sum. This is one round of coordinate descent on the dual: a token's price becomes the highest of
  its `scores + bias` that is not chosen, the (k + 1)-th; an expert's becomes the value that floor(N k / E) of its
  `scores - alpha` exceed, or reach at a tie. The tokens' prices move with the bias, so repeated rounds approach
  balance. Only differences between experts matter, so the mean is subtracted to keep the numbers small.

  Args:
    bias: float32 `[E]`, from the previous batch; returned unchanged if no token is real.
    scores: float32 `[N, E]`.
    mask: bool `[N]`, False for padding.
    k: experts per token, less than E.
  """
  tokens, num_experts = scores.shape
  alpha = highest(scores + bias, k + 1)[0][:, k:]  # [N, 1]
  excess = jnp.where(mask[:, None], scores - alpha, -jnp.inf)
  largest = highest(excess.T, tokens * k // num_experts + 1)[0]
  price = largest[:, mask.sum() * k // num_experts]
  return jnp.where(mask.any(), price.mean() - price, bias)


class BiasedRouter(TopKRouter):
  """Top-k by score plus bias, with gates from the scores only; a method says how training moves the bias."""

  def __init__(self, config: TopKConfig, site: Site, *, rngs: nnx.Rngs):
    super().__init__(config, site, rngs=rngs)
    self.bias = RouterState(jnp.zeros(site.num_experts))

  def ranking(self, logits: Logits, scores: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    return self.ranked(logits, scores) + self.bias[...]

  def ranked(self, logits: Logits, scores: jax.Array) -> jax.Array:
    """Float32 `[G, n, E]`, what the bias is added to."""
    return scores


@dataclasses.dataclass(frozen=True)
class LossFreeConfig(TopKConfig, name="loss_free"):
  """Loss-free balancing, dropless as published. DeepSeek-V3 renormalises, the paper's models do not.

  Attributes:
    bias_rate: u, how far a bias moves per step.
  """

  paper = "Wang et al. 2024 (DeepSeek), arXiv 2408.15664"

  scores: Literal["softmax", "sigmoid"] = "sigmoid"
  bias_rate: float = 0.001

  def __post_init__(self):
    super().__post_init__()
    require(self.bias_rate > 0, "bias_rate", self.bias_rate, "expected more than 0, or the bias would never move")

  @property
  def growth(self) -> Literal["unchosen"] | None:
    return "unchosen" if self.scores == "sigmoid" and self.dropless else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "LossFree":
    return LossFree(self, site, rngs=rngs)


class LossFree(BiasedRouter):
  """Auxiliary-loss-free balancing. The paper's MaxVio is the metric `load_max` minus 1."""

  config: LossFreeConfig

  def seen(self, decision: Decision) -> dict[str, jax.Array]:
    takes = jax.vmap(lambda c, w: queues.wanted_experts(c, w, self.num_experts))(decision.choices, decision.wanted)
    return {"load": takes.sum((0, 1))}

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    return {"bias": bias_by_sign(self.bias[...], seen["load"].sum(0), self.config.bias_rate)}


@dataclasses.dataclass(frozen=True)
class QuantileBalancedConfig(TopKConfig, name="quantile_balanced"):
  """Quantile balancing: there is no rate, since every step solves for the bias.

  Attributes:
    bias_on: what the bias is added to: the "scores", or the raw "logits".
  """

  paper = "Su 2026 (quantile balancing), kexue.fm/archives/11619"

  scores: Literal["softmax", "sigmoid"] = "sigmoid"
  bias_on: Literal["scores", "logits"] = "scores"

  @property
  def growth(self) -> Literal["unchosen"] | None:
    return "unchosen" if self.scores == "sigmoid" and self.bias_on == "scores" and self.dropless else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "QuantileBalanced":
    return QuantileBalanced(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    top_k, experts = self.top_k, site.num_experts
    require(
      top_k < experts, "top_k", top_k, f"expected less than the {experts} experts, or there is nothing to balance"
    )


class QuantileBalanced(BiasedRouter):
  """Quantile balancing: the bias that would have balanced this batch is used for the next.

  Of a step in several micro-batches it is the mean of their biases, weighted by their tokens.
  """

  config: QuantileBalancedConfig

  def ranked(self, logits: Logits, scores: jax.Array) -> jax.Array:
    return scores if self.config.bias_on == "scores" else logits.noisy

  def seen(self, decision: Decision) -> dict[str, jax.Array]:
    scores = self.ranked(decision.logits, decision.scores).reshape(-1, self.num_experts)
    return {"bias": bias_by_quantile(self.bias[...], scores, decision.mask.reshape(-1), self.config.top_k)}

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    return {"bias": step_mean(share, seen["bias"])}
