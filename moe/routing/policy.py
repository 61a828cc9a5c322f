"""REINFORCE: how a router learns from the loss that its sampled choices led to."""

import dataclasses

import jax
import jax.numpy as jnp

from moe.routing.groups import Groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Policy:
  """What a REINFORCE router hands to the trainer, which alone knows the cost of a token's routing.

  Attributes:
    log_prob: float32 `[G, n]` (`[B, T]` in a layer's report), log-probability of the sampled choice.
    baseline: float32, of the same shape: the expected cost of the token, in nats.
    weight: float32 scalar, weight of the policy loss in the objective.
  """

  log_prob: jax.Array
  baseline: jax.Array
  weight: jax.Array

  def joined(self, groups: Groups, batch: int, length: int) -> "Policy":
    """The same for the tokens in their sequences, `[B, T]`."""
    log_prob, baseline = (groups.join(x, batch, length) for x in (self.log_prob, self.baseline))
    return Policy(log_prob, baseline, self.weight)


def policy_loss(policy: Policy, cost: jax.Array, weights: jax.Array) -> jax.Array:
  """The score-function surrogate plus the baseline's regression loss: Bengio et al. 2013, section 4; Williams 1992.

  The gradient of `stop(cost - baseline) * log_prob` is an unbiased estimate of the gradient of the expected cost, for
  any baseline that does not depend on the choice; the squared error moves the baseline to the mean cost.

  Args:
    policy: of any number of layers, `[..., B, T]`.
    cost: float32 `[B, T]`, nats; no gradient flows into it.
    weights: float32 `[B, T]`, how much a token counts; 0 for one whose cost is not part of the loss.

  Returns:
    float32 scalar, weighted; the sum over layers of weighted means over tokens.
  """
  advantage = jax.lax.stop_gradient(cost - policy.baseline)
  error = jnp.square(policy.baseline - jax.lax.stop_gradient(cost))
  each = (advantage * policy.log_prob + 0.5 * error) * weights
  per_layer = each.sum((-2, -1)) / jnp.maximum(weights.sum(), 1.0)
  return (policy.weight * per_layer).sum()
