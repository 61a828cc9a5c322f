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
