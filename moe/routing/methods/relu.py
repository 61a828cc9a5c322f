"""ReLU routing: a differentiable, sparse gate whose sparsity is controlled by an L1 penalty.

Wang et al. 2024, "ReMoE: fully differentiable mixture-of-experts with ReLU routing", arXiv 2412.14711.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.router import RouterState, Site, step_mean
from moe.routing.scores import router_kernel, router_logits
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter
from moe.routing.types import RouterInput

# Of the coefficient's logarithm: where the target cannot be reached, as with a frozen matrix, the loss stays finite.
_MOST = math.log(1e6)


def balanced_l1(gates: jax.Array, mask: jax.Array, experts_per_token: float) -> jax.Array:
  """Mean over tokens of sum_e f_e R_e, f_e = E / (k T) * the tokens with R_e > 0: L1, larger for busier experts.

  With f = 1, that is, balanced and at the target sparsity, it is the plain L1 norm. No gradient flows through f.

  Args:
    gates: float32 `[G, n, E]`, R, at least 0; all groups are counted together.
    mask: bool `[G, n]`, False for padding.
    experts_per_token: k.
  """
  real = jnp.maximum(mask.sum(), 1)
  active = ((gates > 0) & mask[..., None]).sum((0, 1))
  busyness = gates.shape[-1] * active / (experts_per_token * real)
  return jnp.einsum("gne,gn,e->", gates, mask.astype(jnp.float32), busyness) / real


def sparsity(gates: jax.Array, mask: jax.Array) -> jax.Array:
  """Float32 scalar, share of the gates `[G, n, E]` of real tokens that are 0."""
  return ((gates == 0) & mask[..., None]).sum() / jnp.maximum(mask.sum() * gates.shape[-1], 1)


@dataclasses.dataclass(frozen=True)
class ReLUConfig(TokenwiseConfig, CapacityConfig, name="relu"):
  """ReLU routing: a token goes to every expert with a positive gate.

  Attributes:
    capacity_factor: None for dropless, as published; a factor gives slots, which overflow early in training.
    experts_per_token: k, the average that the penalty steers towards. Training starts at E / 2.
    l1_start: the penalty's initial coefficient.
    l1_step: the factor by which a step multiplies or divides the coefficient.
  """

  paper = "Wang et al. 2024, arXiv 2412.14711"

  experts_per_token: float = 2.0
  l1_start: float = 1e-8
  l1_step: float = 1.2

  def __post_init__(self):
    super().__post_init__()
    for name in ("experts_per_token", "l1_start"):
      require(getattr(self, name) > 0, name, getattr(self, name), "expected more than 0")
    require(self.l1_step > 1, "l1_step", self.l1_step, "expected more than 1")

  @property
  def growth(self) -> Literal["silent"] | None:
    return "silent" if self.capacity_factor is None else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "ReLU":
    return ReLU(self, site, rngs=rngs)

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    each, experts = self.experts_per_token, site.num_experts
    require(each < experts, "experts_per_token", each, f"expected less than the {experts} experts there are")


class ReLU(TokenwiseRouter):
  """ReMoE. A token's gates are the positive logits, not normalised.

  The paper averages the penalty, and the sparsity that moves its coefficient, over layers. Here each layer has its own
  coefficient and meets the target on its own, since layers do not see each other.

  Attributes:
    log_coefficient: scalar, the logarithm of the penalty's coefficient, which cannot underflow while a layer is too
      sparse.
  """

  config: ReLUConfig

  def __init__(self, config: ReLUConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    self.log_coefficient = RouterState(jnp.float32(math.log(config.l1_start)))

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    gates = jax.nn.relu(router_logits(inputs.tokens, self.kernel[...]))
    l1 = balanced_l1(gates, inputs.mask, self.config.experts_per_token)
    total = jnp.exp(self.log_coefficient[...]) * l1
    seen = {"sparsity": sparsity(gates, inputs.mask)} if training else {}
    return Selection(gates > 0, gates, None, {"l1": l1}, total, seen=seen)

  def next_state(self, seen: dict[str, jax.Array], share: jax.Array) -> dict[str, jax.Array]:
    """The coefficient grows while the sparsity is below 1 - k / E."""
    target = 1.0 - self.config.experts_per_token / self.num_experts
    step = math.log(self.config.l1_step) * jnp.sign(target - step_mean(share, seen["sparsity"]))
    return {"log_coefficient": jnp.minimum(self.log_coefficient[...] + step, _MOST)}
