"""An independent stochastic unit per expert: any number of experts may be on.

Bengio, Léonard and Courville 2013, arXiv 1308.3432: the units that gate blocks of a network in the section on
conditional computation. The gradient flows through the weights of the experts that are on.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.routing.capacity import CapacityConfig
from moe.routing.losses import masked_mean
from moe.routing.router import Site
from moe.routing.sampling import training_key
from moe.routing.scores import router_bias, router_kernel, router_logits
from moe.routing.solvers.estimators import firing_probability, noisy_rectifier, stochastic_times_smooth
from moe.routing.tokenwise import Selection, TokenwiseConfig, TokenwiseRouter, require_room_for_all
from moe.routing.types import RouterInput

PAPER = "Bengio, Léonard and Courville 2013, arXiv 1308.3432"


def sparsity_loss(rate: jax.Array, target: float) -> jax.Array:
  """Mean over experts of KL(Bernoulli(target) || Bernoulli(rate)), in nats; 0 where every rate is the target.

  Args:
    rate: float32 `[E]`, share of the tokens for which each expert is on.
    target: the desired share, between 0 and 1.
  """
  rate = jnp.clip(rate, 1e-6, 1 - 1e-6)  # a unit that is always or never on would give log(0)
  return jnp.mean(target * jnp.log(target / rate) + (1 - target) * jnp.log((1 - target) / (1 - rate)))


@dataclasses.dataclass(frozen=True)
class NoisyRectifierConfig(TokenwiseConfig, CapacityConfig, name="noisy_rectifier"):
  """Noisy rectifier: an expert is on if its noisy activation is positive.

  Attributes:
    noise: standard deviation of the Gaussian noise added to the activations in training.
    l1_loss: weight of the mean over tokens of the sum of a token's weights, which drives more of them to 0.
  """

  paper = PAPER

  noise: float = 0.5
  l1_loss: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    for name in ("noise", "l1_loss"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "expected at least 0")

  @property
  def growth(self) -> Literal["silent"] | None:
    return "silent" if self.capacity_factor is None else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "NoisyRectifier":
    return NoisyRectifier(self, site, rngs=rngs)


class NoisyRectifier(TokenwiseRouter):
  """Weight max(0, x w_e + b_e + noise); the expert takes the token if that is not 0.

  Half of the experts are on at first. Evaluation has no noise.
  """

  config: NoisyRectifierConfig

  def __init__(self, config: NoisyRectifierConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    self.bias = router_bias(site, rngs)

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """See the base class."""
    activation = router_logits(inputs.tokens, self.kernel[...]) + self.bias[...]
    noise = jnp.zeros(())
    if training and self.config.noise:
      noise = self.config.noise * jax.random.normal(training_key(self, inputs), activation.shape)
    weight = noisy_rectifier(activation, noise)
    l1 = masked_mean(weight.sum(-1), inputs.mask)
    return Selection(weight > 0, weight, losses={"l1": l1}, auxiliary_loss=self.config.l1_loss * l1)


@dataclasses.dataclass(frozen=True)
class StochasticTimesSmoothConfig(TokenwiseConfig, CapacityConfig, name="stochastic_times_smooth"):
  """Stochastic times smooth: an expert is on with probability sqrt(p), then with weight sqrt(p).

  Attributes:
    active_experts: expected experts per token at the start, and the target of `sparsity_loss`; less than E.
    sparsity_loss: weight of the divergence of every expert's rate from active_experts / E, so it balances them too.
    evaluation: "expectation": every expert with its expected weight p, at the cost of all E; "threshold": those more
      likely on than off, with weight sqrt(p).
  """

  paper = PAPER

  active_experts: float = 2.0
  sparsity_loss: float = 0.01
  evaluation: Literal["expectation", "threshold"] = "expectation"

  def __post_init__(self):
    super().__post_init__()
    require(self.active_experts > 0, "active_experts", self.active_experts, "expected more than 0")
    require(self.sparsity_loss >= 0, "sparsity_loss", self.sparsity_loss, "expected at least 0")

  @property
  def growth(self) -> Literal["silent"] | None:
    return "silent" if self.capacity_factor is None else None

  def make(self, site: Site, rngs: nnx.Rngs) -> "StochasticTimesSmooth":
    return StochasticTimesSmooth(self, site, rngs=rngs)

  def target(self, site: Site) -> float:
    """The share of the tokens that each expert should be on for."""
    return self.active_experts / site.num_experts

  def check_site(self, site: Site) -> None:
    super().check_site(site)
    active, experts = self.active_experts, site.num_experts
    require(active < experts, "active_experts", active, f"expected less than the {experts} experts there are")
    if self.evaluation == "expectation":
      require_room_for_all(self, site.num_experts, training=False)


class StochasticTimesSmooth(TokenwiseRouter):
  """Weight b_e sqrt(p_e) with p_e = sigmoid(x w_e + b_e) and b_e ~ Bernoulli(sqrt(p_e)), so p_e on average.

  A token has sum_e sqrt(p_e) experts on average. Evaluation is deterministic, see `evaluation`.
  """

  config: StochasticTimesSmoothConfig

  def __init__(self, config: StochasticTimesSmoothConfig, site: Site, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, site.num_experts
    self.kernel = router_kernel(site, rngs)
    self.target = config.target(site)
    p = self.target**2
    self.bias = nnx.Param(jnp.full(site.num_experts, math.log(p / (1 - p))))

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """See the base class."""
    activation = router_logits(inputs.tokens, self.kernel[...]) + self.bias[...]
    probability = firing_probability(activation)
    if training:
      weight = stochastic_times_smooth(activation, jax.random.uniform(training_key(self, inputs), activation.shape))
      chosen = weight > 0
    elif self.config.evaluation == "threshold":
      weight, chosen = probability, probability > 0.5
    else:
      weight, chosen = jax.nn.sigmoid(activation), jnp.ones(activation.shape, bool)
    rate = jax.vmap(masked_mean, (-1, None))(probability, inputs.mask)
    sparsity = sparsity_loss(rate, self.target)
    losses = {"sparsity": sparsity}
    return Selection(chosen, weight, losses=losses, auxiliary_loss=self.config.sparsity_loss * sparsity)
