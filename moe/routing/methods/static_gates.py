"""Static gates: one weighting of the experts per task, the same for every input.

Hazimeh et al. 2021, arXiv 2106.03760, section 3: tasks that share experts have a gate each, of parameters alone. They
are no routers, since nothing is dispatched: all inputs of a task go to the same experts. `dselect_k` as a router has a
static gate too, for the layers of a model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import Choice, require
from moe.routing.methods.dselect_k import MIXTURE_INIT, auxiliary_loss, check_options, gate, initial_parameters
from moe.routing.solvers.highest import are_highest


class StaticGate(nnx.Module):
  """Base of static gates."""

  def __call__(self) -> tuple[jax.Array, jax.Array]:
    """The weights, float32 `[E]`, at least 0; and what is added to the loss, a float32 scalar."""
    raise NotImplementedError


class StaticGateConfig(Choice):
  """Base config of static gates."""

  def make(self, num_experts: int, rngs: nnx.Rngs) -> StaticGate:
    """The gate of one task.

    Raises:
      ConfigError: it wants more experts than there are.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TopKGateConfig(StaticGateConfig, name="top_k"):
  """The softmax over the k highest of E logits (Shazeer et al. 2017, without noise); the others have weight 0.

  Attributes:
    k: experts of the task.
  """

  k: int = 2

  def __post_init__(self):
    require(self.k >= 1, "k", self.k, "expected at least 1 expert")

  def make(self, num_experts: int, rngs: nnx.Rngs) -> StaticGate:
    return LogitGate(num_experts, _at_most(self.k, num_experts), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class SoftmaxGateConfig(StaticGateConfig, name="softmax"):
  """The softmax over all logits: every expert has a weight (Ma et al. 2018, without their input)."""

  def make(self, num_experts: int, rngs: nnx.Rngs) -> StaticGate:
    return LogitGate(num_experts, num_experts, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class DSelectKGateConfig(StaticGateConfig, name="dselect_k"):
  """DSelect-k: the fields are those of the router of this name.

  Attributes:
    k: most experts of the task, once the selectors are binary.
    gamma: width of the smooth step's smooth region.
    entropy_loss: weight of the selectors' entropy, which makes them binary.
  """

  k: int = 2
  gamma: float = 1.0
  entropy_loss: float = 1e-6

  def __post_init__(self):
    check_options(self.k, self.gamma, self.entropy_loss)

  def make(self, num_experts: int, rngs: nnx.Rngs) -> StaticGate:
    _at_most(self.k, num_experts)
    return StaticDSelectK(self, num_experts, rngs=rngs)


class LogitGate(StaticGate):
  """The softmax over the k highest logits.

  Attributes:
    logits: float32 `[E]`.
  """

  def __init__(self, num_experts: int, k: int, *, rngs: nnx.Rngs):
    self.k = k
    drawn = jax.random.uniform(rngs.params(), (num_experts,), jnp.float32, -MIXTURE_INIT, MIXTURE_INIT)
    self.logits = nnx.Param(drawn)

  def __call__(self) -> tuple[jax.Array, jax.Array]:
    logits = self.logits[...]
    kept = are_highest(jax.lax.stop_gradient(logits), self.k)
    return jax.nn.softmax(logits, where=kept), jnp.zeros(())


class StaticDSelectK(StaticGate):
  """DSelect-k of parameters alone.

  Attributes:
    z: float32 `[k, ceil(log2 E)]`, the codes of the selectors.
    alpha: float32 `[k]`, the logits of their mixture.
  """

  def __init__(self, config: DSelectKGateConfig, num_experts: int, *, rngs: nnx.Rngs):
    self.config, self.num_experts = config, num_experts
    self.z, self.alpha = initial_parameters(rngs, num_experts, config.k, config.gamma)

  def __call__(self) -> tuple[jax.Array, jax.Array]:
    weight, losses = gate(self.z[...], self.alpha[...], self.num_experts, self.config.gamma)
    return weight, auxiliary_loss(losses, self.config.entropy_loss)


def _at_most(k: int, num_experts: int) -> int:
  require(k <= num_experts, "k", k, f"expected at most the {num_experts} experts there are")
  return k
