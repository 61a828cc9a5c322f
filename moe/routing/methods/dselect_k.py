"""DSelect-k: a differentiable choice of k experts that becomes sparse as it settles.

Hazimeh et al. 2021, "DSelect-k: differentiable selection in the mixture of experts", arXiv 2106.03760,
section 3.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.losses import masked_mean
from moe.routing.router import Site
from moe.routing.scores import router_logits
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput

_EPSILON = 1e-6
MIXTURE_INIT = 0.05


def smooth_step(t: jax.Array, gamma: float) -> jax.Array:
  """S(t): 0 up to -gamma/2, 1 from gamma/2, and between them the cubic that makes it continuously differentiable.

  Written as u^2 (3 - 2u), which never rounds below 0 and keeps small values accurate.
  """
  u = jnp.clip(t / gamma + 0.5, 0.0, 1.0)
  return jnp.square(u) * (3.0 - 2.0 * u)


def single_selectors(z: jax.Array, num_experts: int, gamma: float) -> jax.Array:
  """r(z): the product over an expert's binary code, most significant bit first, of S(z_j) or 1 - S(z_j).

  Once every |z_j| >= gamma / 2, one expert has weight 1 and the others exactly 0. If E is not a power of two, the
  weight of codes without an expert is lost: as in the authors' code, a penalty drives it out and nothing is rescaled.

  Args:
    z: float32 `[..., m]`, m = ceil(log2 E).
    num_experts: E.
    gamma: width of the smooth region, > 0.

  Returns:
    float32 `[..., E]`.
  """
  # 1 - S(t) is computed as S(-t), to avoid cancellation.
  ones, zeros = smooth_step(z, gamma), smooth_step(-z, gamma)
  weight = jnp.ones((*z.shape[:-1], 1), jnp.float32)
  for bit in range(z.shape[-1]):
    both = jnp.stack([zeros[..., bit, None], ones[..., bit, None]], axis=-1)
    weight = (weight[..., None] * both).reshape(*z.shape[:-1], -1)  # [..., 2^(bit + 1)]
  return weight[..., :num_experts]


def mixture(selectors: jax.Array, alpha: jax.Array) -> jax.Array:
  """q: the selectors `[..., k, E]` weighted by the softmax of `alpha` `[..., k]`; float32 `[..., E]`."""
  return (jax.nn.softmax(alpha)[..., None] * selectors).sum(-2)


def selector_entropy(selectors: jax.Array) -> jax.Array:
  """The sum of the entropies of the selectors `[..., k, E]`, in nats; float32 `[...]`."""
  return -(selectors * jnp.log(selectors + _EPSILON)).sum((-2, -1))


def unreachable_penalty(selectors: jax.Array) -> jax.Array:
  """The sum over the selectors `[..., k, E]` of 1 / (weight on experts that exist); float32 `[...]`, at least k.

  Each term is bounded by 10^6: for a selector that lies completely on codes without an expert the quotient would be
  infinite, and no gradient could bring it back, since the smooth step is flat there.
  """
  return (1.0 / jnp.maximum(selectors.sum(-1), _EPSILON)).sum(-1)


def check_options(k: int, gamma: float, entropy_loss: float) -> None:
  """Raises `ConfigError` unless a gate can have these options."""
  require(k >= 1, "k", k, "expected at least 1 expert")
  require(gamma > 0, "gamma", gamma, "expected more than 0")
  require(entropy_loss >= 0, "entropy_loss", entropy_loss, "expected a weight of at least 0")


def gate(z: jax.Array, alpha: jax.Array, num_experts: int, gamma: float) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weights q, float32 `[..., E]`, and the terms of the loss, float32 `[...]` each.

  Args:
    z: float32 `[..., k, ceil(log2 E)]`.
    alpha: float32 `[..., k]`.
    num_experts: E; only if it is no power of two, there is a penalty for "unreachable" codes.
    gamma: width of the smooth region, > 0.
  """
  selectors = single_selectors(z, num_experts, gamma)
  losses = {"entropy": selector_entropy(selectors)}
  if num_experts & (num_experts - 1):
    losses["unreachable"] = unreachable_penalty(selectors)
  return mixture(selectors, alpha), losses


def auxiliary_loss(losses: Mapping[str, jax.Array], entropy_loss: float) -> jax.Array:
  """The sum of a gate's terms; the penalty has weight 1, as in the authors' code."""
  return entropy_loss * losses["entropy"] + losses.get("unreachable", 0.0)


def initial_parameters(
  rngs: nnx.Rngs, num_experts: int, k: int, gamma: float, inputs: tuple[int, ...] = ()
) -> tuple[nnx.Param, nnx.Param]:
  """Of z `[*inputs, k, ceil(log2 E)]`, so small that all experts begin alike, and of alpha `[*inputs, k]`."""

  def uniform(limit: float, *shape: int) -> nnx.Param:
    return nnx.Param(jax.random.uniform(rngs.params(), inputs + shape, jnp.float32, -limit, limit))

  return uniform(gamma / 100, k, math.ceil(math.log2(num_experts))), uniform(MIXTURE_INIT, k)


@dataclasses.dataclass(frozen=True)
class DSelectKConfig(TokenwiseConfig, CapacityConfig, name="dselect_k"):
  """DSelect-k: k selectors, each of one expert by a smooth binary code.

  Attributes:
    capacity_factor: None for dropless, as published; a factor gives slots, which overflow early in training.
    k: most experts per token once the selectors are binary; before that every token goes to every expert.
    gate: "per_example": z and alpha are linear in the token. "static": they are parameters, the same for all tokens.
    gamma: width of the smooth step's smooth region. Outside it a bit is settled and gets no gradient.
    entropy_loss: weight of the selectors' entropy, which makes them binary.
  """

  paper = "Hazimeh et al. 2021, arXiv 2106.03760"

  k: int = 2
  gate: Literal["static", "per_example"] = "per_example"
  gamma: float = 1.0
  entropy_loss: float = 1e-6

  def __post_init__(self):
    super().__post_init__()
    check_options(self.k, self.gamma, self.entropy_loss)

  def make(self, site: Site, rngs: nnx.Rngs) -> "DSelectK":
    return DSelectK(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    experts = site.num_experts
    require(self.k <= experts, "k", self.k, f"expected at most the {experts} experts there are")


class DSelectK(TokenwiseRouter):
  """DSelect-k with dispatch as sparse as the weights: experts of weight 0 are not computed.

  The authors' code sums the entropy and the penalty over the batch; here they are means over the real tokens, so that
  the weights do not depend on the batch size. The penalty's weight is 1, as in their code. Their dense layers have
  biases; the paper's gates and these do not.

  Attributes:
    z: float32 `[k, ceil(log2 E)]`, or `[d, k, ceil(log2 E)]` if linear in the token.
    alpha: float32 `[k]`, or `[d, k]`.
  """

  config: DSelectKConfig

  def __init__(self, config: DSelectKConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    inputs = (site.d_model,) if config.gate == "per_example" else ()
    self.z, self.alpha = initial_parameters(rngs, site.num_experts, config.k, config.gamma, inputs)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    z, alpha = self.z[...], self.alpha[...]
    if self.config.gate == "per_example":
      z, alpha = _linear(inputs.tokens, z), _linear(inputs.tokens, alpha)
    weight, losses = gate(z, alpha, self.num_experts, self.config.gamma)
    weight = jnp.broadcast_to(weight, (*inputs.mask.shape, self.num_experts))
    losses = {name: masked_mean(loss, inputs.mask) for name, loss in losses.items()}
    return Selection(weight > 0, weight, weight, losses, auxiliary_loss(losses, self.config.entropy_loss))


def _linear(tokens: jax.Array, kernel: jax.Array) -> jax.Array:
  """`[..., n, d]` and `[d, ...]` to `[..., n, ...]`."""
  flat = router_logits(tokens, kernel.reshape(len(kernel), math.prod(kernel.shape[1:])))
  return flat.reshape(*tokens.shape[:-1], *kernel.shape[1:])
