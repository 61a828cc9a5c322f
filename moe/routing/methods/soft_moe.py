"""Soft MoE: every slot is a mixture of all tokens, every token a mixture of all slots.

Puigcerver et al. 2023, "From sparse to soft mixtures of experts", arXiv 2308.00951.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import round_half_up
from moe.routing.groups import Groups, check_group_size, checked_groups, within_sequences
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig, Site
from moe.routing.sampling import training_noise
from moe.routing.scores import router_logits
from moe.routing.types import RouterInput, RouterOutput, SoftRouting

_NORM_EPSILON = 1e-6

Mixing = Literal["soft", "uniform", "identity"]


def unit(x: jax.Array, axis: int) -> jax.Array:
  """`x` divided by its l2 norm along `axis`: smooth at 0, where padding may lie."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(axis, keepdims=True) + _NORM_EPSILON**2)


def soft_moe_logits(tokens: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """Section 2.3: cosines of tokens and slots times `scale`, since with plain products the softmax collapses as d grows.

  Args:
    tokens: `[..., n, d]`.
    kernel: float32 `[d, E, P]`, Phi in the paper.
    scale: float32 scalar.

  Returns:
    float32 `[..., n, E, P]`.
  """
  flat = scale * unit(kernel, axis=0).reshape(len(kernel), -1)
  logits = router_logits(unit(tokens.astype(jnp.float32), axis=-1), flat)
  return logits.reshape(*logits.shape[:-1], *kernel.shape[1:])


def soft_moe(logits: jax.Array, mask: jax.Array) -> SoftRouting:
  """Equations 1 and 2: dispatch is the softmax over the tokens of a group, combine the one over all its slots.

  Padding enters no slot and receives nothing.

  Args:
    logits: float32 `[G, n, E, P]`.
    mask: bool `[G, n]`, False for padding.
  """
  dispatch, combine = _softmaxes(logits.reshape(*mask.shape, -1), mask)
  return SoftRouting(dispatch.reshape(logits.shape), combine.reshape(logits.shape))


def mixed_alike(mixing: Mixing, mask: jax.Array, experts: int, slots: int, *, over_tokens: bool) -> jax.Array:
  """The weights of the ablations of section 3.6, float32 `[G, n, E, P]`, which know nothing of the tokens.

  Args:
    mixing: "uniform" or "identity", by which token i is slot i.
    mask: bool `[G, n]`, False for padding.
    experts: E.
    slots: P.
    over_tokens: whether uniform weights sum to 1 over the tokens of a group, as those of dispatch, or over its slots.
  """
  number = experts * slots
  if mixing == "identity":
    weights = jnp.broadcast_to(jnp.eye(mask.shape[1], number), (*mask.shape, number))
  elif over_tokens:
    weights = jnp.broadcast_to(1 / jnp.maximum(mask.sum(1), 1)[:, None, None], (*mask.shape, number))
  else:
    weights = jnp.full((*mask.shape, number), 1 / number)
  return jnp.where(mask[..., None], weights, 0.0).astype(jnp.float32).reshape(*mask.shape, experts, slots)


@jax.custom_vjp
def _softmaxes(slots: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both softmaxes of logits `[G, n, S]`, 0 at padding."""
  real = mask[..., None]
  return jax.nn.softmax(slots, axis=1, where=real), jnp.where(real, jax.nn.softmax(slots, axis=2), 0.0)


def _softmaxes_forward(slots, mask):
  both = _softmaxes(slots, mask)
  return both, both


def _softmaxes_backward(both, gradients):
  # The sums are written as contractions, since XLA:CPU would turn them into fused loops, ten times slower.
  (dispatch, combine), (d_dispatch, d_combine) = both, gradients
  sum_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  over_tokens = sum_product("gns,gns->gs", dispatch, d_dispatch)[:, None]
  over_slots = sum_product("gns,gns->gn", combine, d_combine)[..., None]
  return dispatch * (d_dispatch - over_tokens) + combine * (d_combine - over_slots), None


_softmaxes.defvjp(_softmaxes_forward, _softmaxes_backward)


@dataclasses.dataclass(frozen=True)
class SoftMoEConfig(RouterConfig, name="soft_moe"):
  """Soft MoE: slots mix the tokens of a group, tokens mix the slots.

  Attributes:
    slots: per expert; None for 1, the paper's best, or for what `capacity_factor` gives.
    capacity_factor: slots per token, E * slots / n in a group of n; there may be more than tokens. Slots are
      parameters, so their number must be known before any batch: set a group_size.
    group_size: tokens mixed together; 0 for a whole sequence.
    noise: in training the logits get Gaussian noise of standard deviation noise / E, as in V-MoE.
    dispatch, combine: "soft", or the ablations of section 3.6: "uniform", every slot the mean of all tokens, and every
      token the mean of all slots; or both "identity": token i is slot i, and there are as many slots as tokens.
  """

  paper = "Puigcerver et al. 2023, arXiv 2308.00951"
  is_soft = True

  slots: int | None = None
  capacity_factor: float | None = None
  group_size: int = 0
  noise: float = 0.0
  dispatch: Mixing = "soft"
  combine: Mixing = "soft"

  def __post_init__(self):
    factor = self.capacity_factor
    both = self.dispatch == self.combine or "identity" not in (self.dispatch, self.combine)
    require(both, "combine", self.combine, f"expected dispatch = {self.dispatch!r} too, if either is 'identity'")
    require(self.slots is None or self.slots >= 1, "slots", self.slots, "expected at least 1 for each expert, or None")
    require(factor is None or factor > 0, "capacity_factor", factor, "expected more than 0, or None")
    check_group_size(self.group_size, "a whole sequence")
    require(self.noise >= 0, "noise", self.noise, "expected at least 0")
    require(
      self.slots is None or factor is None, "capacity_factor", factor, f"expected None beside slots = {self.slots}"
    )
    require(factor is None or self.group_size > 0, "capacity_factor", factor, "expected None unless group_size > 0")

  def slots_of_expert(self, num_experts: int) -> int:
    """P, the slots per expert."""
    if self.capacity_factor is not None:
      return max(1, round_half_up(self.group_size, num_experts, self.capacity_factor))
    return self.slots or 1

  def make(self, site: Site, rngs: nnx.Rngs) -> "SoftMoE":
    return SoftMoE(self, site, rngs=rngs)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    slots, tokens = site.num_experts * self.slots_of_expert(site.num_experts), self.groups(batch, length).size
    fits = self.dispatch != "identity" or slots == tokens
    require(fits, "dispatch", "identity", f"expected as many slots as the {tokens} tokens of a group, not {slots}")

  @property
  def learns(self) -> bool:
    """Whether any weight is of the tokens."""
    return "soft" in (self.dispatch, self.combine)

  def is_causal(self, *, training: bool) -> bool:
    return False

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return within_sequences(self.group_size or length, length)

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return checked_groups(self.group_size or length, batch, length, training=training)


class SoftMoE(Router):
  """Soft MoE. A slot mixes the whole group, so it belongs in encoders; the cost depends only on the slots.

  Attributes:
    kernel: float32 `[d, E, P]`; its initial scale does not matter, as it is normalised.
    scale: float32 scalar. Both are None where neither dispatch nor combine is soft.
  """

  config: SoftMoEConfig

  def __init__(self, config: SoftMoEConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    shape = (site.d_model, site.num_experts, config.slots_of_expert(site.num_experts))
    drawn = site.d_model**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32) if config.learns else None
    self.kernel = None if drawn is None else nnx.Param(drawn)
    self.scale = None if drawn is None else nnx.Param(jnp.ones(()))

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    routing = self._routing(inputs, training=training)
    metrics = routing_metrics(routing, inputs.mask, routing.combine.sum(-1))
    return RouterOutput(routing, {}, jnp.zeros(()), metrics)

  def _routing(self, inputs: RouterInput, *, training: bool) -> SoftRouting:
    config, sizes = self.config, (self.num_experts, self.config.slots_of_expert(self.num_experts))
    found = {}
    if config.learns:
      logits = soft_moe_logits(inputs.tokens, self.kernel[...], self.scale[...])
      soft = soft_moe(logits + training_noise(self, inputs, logits.shape, training=training), inputs.mask)
      found = {"dispatch": soft.dispatch, "combine": soft.combine}
    for name in ("dispatch", "combine"):
      mixing: Mixing = getattr(config, name)
      if mixing != "soft":
        found[name] = mixed_alike(mixing, inputs.mask, *sizes, over_tokens=name == "dispatch")
    return SoftRouting(**found)
