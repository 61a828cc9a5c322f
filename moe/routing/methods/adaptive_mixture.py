"""Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan and Hinton 1991): every token goes to every expert.

The paper's experts predict the target directly, and its best loss is the likelihood of their mixture. Inside a network
experts have no targets of their own: the network's loss sees their weighted sum, as in the paper's first loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.routing.capacity import CapacityConfig
from moe.routing.router import Site
from moe.routing.scores import router_kernel, router_logits
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter, require_room_for_all
from moe.routing.types import RouterInput


def cooperative_loss(probs: jax.Array, outputs: jax.Array, target: jax.Array) -> jax.Array:
  """||d - sum_i p_i o_i||^2 `[...]`, equation 1.1: every expert is to make up for what the others leave.

  Args:
    probs: p, the gate's softmax, `[..., E]`.
    outputs: o, of all experts, `[..., E, d]`.
    target: d, `[..., d]`.
  """
  return jnp.square(target - jnp.einsum("...e,...ed->...d", probs, outputs)).sum(-1)


def competitive_loss(probs: jax.Array, outputs: jax.Array, target: jax.Array) -> jax.Array:
  """sum_i p_i ||d - o_i||^2 `[...]`, equation 1.2: expected, if the gate draws one expert. Arguments as above.

  Its gradient with respect to o_i is -2 p_i (d - o_i): the gate alone says who learns, not who fits.
  """
  return (probs * jnp.square(target[..., None, :] - outputs).sum(-1)).sum(-1)


def mixture_loss(probs: jax.Array, outputs: jax.Array, target: jax.Array) -> jax.Array:
  """-log sum_i p_i exp(-||d - o_i||^2 / 2) `[...]`, equation 1.3. Arguments as above.

  Its gradient with respect to o_i is -h_i (d - o_i), with the `posterior` h: the expert that fits best learns most.
  """
  return -jax.scipy.special.logsumexp(_log_likelihoods(outputs, target), b=probs, axis=-1)


def posterior(probs: jax.Array, outputs: jax.Array, target: jax.Array) -> jax.Array:
  """How probable each expert is, given the target too, `[..., E]`: p_i exp(-||d - o_i||^2 / 2), normalised."""
  return jax.nn.softmax(jnp.log(probs) + _log_likelihoods(outputs, target))


def _log_likelihoods(outputs: jax.Array, target: jax.Array) -> jax.Array:
  """`[..., E]`, of Gaussians of variance 1, without their constant."""
  return -jnp.square(target[..., None, :] - outputs).sum(-1) / 2


@dataclasses.dataclass(frozen=True)
class AdaptiveMixtureConfig(TokenwiseConfig, CapacityConfig, name="adaptive_mixture"):
  """The dense mixture of all experts; if there are slots, they hold every token at every expert."""

  paper = "Jacobs, Jordan, Nowlan and Hinton 1991, Neural Computation 3(1)"

  def make(self, site: Site, rngs: nnx.Rngs) -> "AdaptiveMixture":
    return AdaptiveMixture(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    for training in (True, False):
      require_room_for_all(self, site.num_experts, training=training)


class AdaptiveMixture(TokenwiseRouter):
  """All experts weighted by softmax(x W), at the cost of E experts per token in training and evaluation alike."""

  def __init__(self, config: AdaptiveMixtureConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """See the base class."""
    probs = jax.nn.softmax(router_logits(inputs.tokens, self.kernel[...]))
    return Selection(jnp.ones(probs.shape, bool), probs, probs)
