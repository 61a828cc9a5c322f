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
