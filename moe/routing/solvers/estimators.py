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


def straight_through(activation: jax.Array, uniform: jax.Array) -> jax.Array:
  """The unit h ~ Bernoulli(sigmoid(a)), whose gradient with respect to a is that with respect to h, as it is.

  That is the paper's better variant; the other multiplies by the slope of the sigmoid. Both are biased: for a linear
  loss the mean of this one is the exact gradient over s (1 - s), s = sigmoid(a), that of the other is exact.

  Args:
    activation: a, float `[...]`.
    uniform: `[...]`, uniform in [0, 1).
  """
  return hard_forward((uniform < jax.nn.sigmoid(activation)).astype(activation.dtype), activation)


def reinforce_gradient(fired: jax.Array, activation: jax.Array, loss: jax.Array, baseline: jax.Array) -> jax.Array:
  """(h - sigmoid(a)) (L - c), an estimate of the gradient of E[L] that needs no gradient of L (section 4).

  Unbiased for any baseline c that does not depend on h.

  Args:
    fired: h, 0 or 1, `[...]`, drawn from Bernoulli(sigmoid(a)).
    activation: a, float `[...]`.
    loss: L of all units together, of a shape that fits `[...]`.
    baseline: c, likewise; it may differ from unit to unit.
  """
  return (fired - jax.nn.sigmoid(activation)) * (loss - baseline)


def minimum_variance_baseline(
  fired: jax.Array, activation: jax.Array, loss: jax.Array, probability: jax.Array | None = None
) -> jax.Array:
  """C = E[(h - s)^2 L] / E[(h - s)^2] with s = sigmoid(a), for which `reinforce_gradient` has the least variance.

  Args:
    fired: h, 0 or 1, `[n, ...]`.
    activation: a, `[n, ...]`.
    loss: L, `[n]`.
    probability: of each of the n draws, `[n]`; equal if not given.

  Returns:
    `[...]`; where a unit never varies, the mean loss.
  """
  weights = jnp.full(loss.shape, 1 / loss.size) if probability is None else probability
  squares = jnp.square(fired - jax.nn.sigmoid(activation))
  total = jnp.tensordot(weights, squares, 1)
  weighted = jnp.tensordot(weights * loss, squares, 1)
  return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1), weights @ loss)


def hard_forward(hard: jax.Array, soft: jax.Array) -> jax.Array:
  """The value of `hard`, to the bit, and the gradient of `soft`: the straight-through trick."""
  return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))
