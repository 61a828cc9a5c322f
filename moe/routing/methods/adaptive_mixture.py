"""Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan and Hinton 1991): every token goes to every expert.

The paper compares three losses of a mixture whose experts predict the target directly. Inside a network the experts
have no targets of their own: the network's loss sees their weighted sum, as in the first of the three.
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


def cooperative_loss(outputs: jax.Array, gates: jax.Array, target: jax.Array) -> jax.Array:
  """`[...]`, ||y - sum_e p_e o_e||^2: each expert corrects the errors of the others, so none specialises.

  Args:
    outputs: o, float `[..., E, d]`.
    gates: p `[..., E]`, summing to 1.
    target: y `[..., d]`.
  """
  return jnp.square(target - jnp.einsum("...e,...ed->...d", gates, outputs)).sum(-1)


def competitive_loss(outputs: jax.Array, gates: jax.Array, target: jax.Array) -> jax.Array:
  """`[...]`, sum_e p_e ||y - o_e||^2: the expected error of one expert drawn by the gates. Shapes as above."""
  return (gates * _squared_error(outputs, target)).sum(-1)


def likelihood_loss(outputs: jax.Array, gates: jax.Array, target: jax.Array) -> jax.Array:
  """`[...]`, -log sum_e p_e exp(-||y - o_e||^2 / 2), in nats without the Gaussians' constant. Shapes as above.

  Its gradient with respect to o_e is -h_e (y - o_e) with the `posterior` h in place of the gate: the expert that does
  best learns fastest.
  """
  return -jax.nn.logsumexp(-0.5 * _squared_error(outputs, target), b=gates, axis=-1)


def posterior(outputs: jax.Array, gates: jax.Array, target: jax.Array) -> jax.Array:
  """`[..., E]`, the probability that each expert generated the target, as a Gaussian of variance 1. Shapes as above."""
  return jax.nn.softmax(jnp.log(gates) - 0.5 * _squared_error(outputs, target))


def _squared_error(outputs: jax.Array, target: jax.Array) -> jax.Array:
  """`[..., E]`, ||y - o_e||^2."""
  return jnp.square(target[..., None, :] - outputs).sum(-1)


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
