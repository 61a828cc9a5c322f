"""Gradients through stochastic or hard units: Bengio, Léonard and Courville 2013, arXiv 1308.3432.

A unit maps an activation a to a random output h with loss L(h); the goal is the gradient of E[L(h)] with respect to a.
Random numbers are arguments, so every function here is deterministic and its expectation can be enumerated.
"""

import jax
import jax.numpy as jnp


def noisy_rectifier(activation: jax.Array, noise: jax.Array) -> jax.Array:
  """The unit h = max(0, a + noise): exactly 0 over much of its range, and its own gradient is unbiased.

  Args:
    activation: a, float `[...]`.
    noise: `[...]`, of mean 0.
  """
  return jax.nn.relu(activation + noise)


def firing_probability(activation: jax.Array) -> jax.Array:
  """sqrt(sigmoid(a)), the probability that a stochastic-times-smooth unit is not 0; its slope is finite everywhere."""
  return jnp.exp(0.5 * jax.nn.log_sigmoid(activation))


def stochastic_times_smooth(activation: jax.Array, uniform: jax.Array) -> jax.Array:
  """The unit h = b sqrt(p) with b ~ Bernoulli(sqrt(p)) and p = sigmoid(a), so that E[h] = p.

  The gradient is that of the smooth factor with b held fixed: for a linear loss, half the gradient of the expectation,
  since the other half comes from how b depends on a.

  Args:
    activation: a, float `[...]`.
    uniform: `[...]`, uniform in [0, 1).
  """
  root = firing_probability(activation)
  return jnp.where(uniform < root, root, 0.0)


def hard_forward(hard: jax.Array, soft: jax.Array) -> jax.Array:
  """The value of `hard`, to the bit, and the gradient of `soft`: the straight-through trick."""
  return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))


def straight_through(activation: jax.Array, uniform: jax.typing.ArrayLike, *, slope: bool) -> jax.Array:
  """The unit h = 1 if uniform < sigmoid(a) else 0, whose gradient is passed to a as if h were a.

  Args:
    activation: a, float `[...]`.
    uniform: `[...]`, uniform in [0, 1); 0.5 is the hard threshold at a = 0.
    slope: whether the gradient is multiplied by sigmoid'(a), as if h were sigmoid(a).
  """
  probability = jax.nn.sigmoid(activation)
  hard = (probability > uniform).astype(activation.dtype)
  return hard_forward(hard, probability if slope else activation)


def reinforce(activation: jax.Array, output: jax.Array, loss: jax.Array, baseline: jax.typing.ArrayLike) -> jax.Array:
  """(h - sigmoid(a)) (L - c), an unbiased estimate of dE[L]/da, `[...]`, for any c that does not depend on h.

  Args:
    activation: a, float `[...]`.
    output: h `[...]`, 0 or 1, which was 1 with probability sigmoid(a).
    loss: L(h) `[...]`; only its value is used, so it need not be differentiable.
    baseline: c `[...]`.
  """
  return (output - jax.nn.sigmoid(activation)) * (loss - baseline)


def minimum_variance_baseline(score: jax.Array, loss: jax.Array, probability: jax.typing.ArrayLike) -> jax.Array:
  """E[score^2 L] / E[score^2], the constant c with which score * (L - c) varies least.

  Args:
    score: d log P(outcome) / da, float `[..., outcomes]`; h - sigmoid(a) for a binary unit.
    loss: `[..., outcomes]`.
    probability: of each outcome, `[..., outcomes]`; any constant for equally weighted samples.
  """
  weight = probability * jnp.square(score)
  return (weight * loss).sum(-1) / weight.sum(-1)
