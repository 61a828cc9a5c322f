"""Top-p routing: the fewest experts whose probabilities reach p. Huang et al. 2024, arXiv 2403.07652."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.losses import negative_entropy
from moe.routing.router import Site
from moe.routing.scores import router_kernel, router_logits
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput


def nucleus(probs: jax.Array, p: float) -> jax.Array:
  """Bool `[..., E]`: an expert is taken while the likelier ones have less than p together. Equation 3.

  Args:
    probs: float32 `[..., E]`; ties go to the lower index.
    p: probability to reach; the likeliest expert is always taken.
  """
  order = jnp.argsort(-probs, axis=-1, stable=True)
  descending = jnp.take_along_axis(probs, order, axis=-1)
  taken = jnp.cumsum(descending, axis=-1) - descending < p
  return jnp.take_along_axis(taken, jnp.argsort(order, axis=-1), axis=-1)


@dataclasses.dataclass(frozen=True)
class TopPConfig(TokenwiseConfig, CapacityConfig, name="top_p"):
  """Options of top-p routing. The paper's load balancing loss is left out: nothing keeps the experts' loads even.

  Attributes:
    p: probability that a token's experts reach together.
    entropy_loss: weight of the mean entropy, which keeps tokens from taking all experts (equation 6).
  """

  paper = "Huang et al. 2024, arXiv 2403.07652"

  p: float = 0.4
  entropy_loss: float = 1e-4

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.p <= 1, "p", self.p, "expected more than 0 and at most 1")
    require(self.entropy_loss >= 0, "entropy_loss", self.entropy_loss, "expected at least 0")

  def make(self, site: Site, rngs: nnx.Rngs) -> "TopP":
    return TopP(self, site, rngs=rngs)


class TopP(TokenwiseRouter):
  """A token takes as many experts as its probabilities are spread over."""

  config: TopPConfig

  def __init__(self, config: TopPConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    logits = router_logits(inputs.tokens, self.kernel[...])
    probs, entropy = jax.nn.softmax(logits), -negative_entropy(logits, inputs.mask)
    chosen = nucleus(jax.lax.stop_gradient(probs), self.config.p)
    return Selection(chosen, probs, probs, {"entropy": entropy}, self.config.entropy_loss * entropy)
