"""The estimators of Bengio et al. 2013 against exact gradients of the expectations that they estimate.

Uniform numbers on a fine even grid in place of random ones give expectations without sampling noise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.solvers.estimators import (
  firing_probability,
  hard_forward,
  noisy_rectifier,
  stochastic_times_smooth,
)

GRID = (jnp.arange(4000) + 0.5) / 4000


def logit(p):
  return jnp.log(p / (1 - p))


def test_stochastic_times_smooth_has_expectation_p_because_of_the_square_root():
  h = stochastic_times_smooth(jnp.broadcast_to(logit(0.25), GRID.shape), GRID)
  assert float(h.mean()) == pytest.approx(0.25, rel=1e-5)
  assert float(jnp.square(h).mean()) == pytest.approx(0.125, rel=1e-5)
  assert float((h > 0).mean()) == pytest.approx(0.5), "on with probability sqrt(p)"


def test_stochastic_times_smooth_passes_on_half_the_gradient_of_a_linear_loss():
  for p in (0.1, 0.25, 0.8):
    mean = jax.grad(lambda a: stochastic_times_smooth(jnp.broadcast_to(a, GRID.shape), GRID).mean())(logit(p))
    assert float(mean) == pytest.approx(0.5 * p * (1 - p), rel=2e-3)


def test_the_firing_probability_has_a_finite_slope_where_it_underflows():
  for a in (-300.0, 0.0, 300.0):
    value, slope = jax.value_and_grad(firing_probability)(jnp.float32(a))
    assert float(value) == pytest.approx(np.sqrt(1 / (1 + np.exp(-np.float64(a)))), rel=1e-6, abs=1e-30)
    assert np.isfinite(slope)


def test_the_noisy_rectifier_is_unbiased_and_often_exactly_zero():
  noise, a = jax.scipy.stats.norm.ppf(GRID), jnp.array([-1.0, 0.3, 2.0])
  h, pull = jax.vjp(lambda a: noisy_rectifier(a, noise[:, None]), a)
  cdf, pdf = jax.scipy.stats.norm.cdf(a), jax.scipy.stats.norm.pdf(a)
  np.testing.assert_allclose(h.mean(0), a * cdf + pdf, atol=2e-3)
  slope = pull(jnp.full_like(h, 1 / GRID.size))[0]
  np.testing.assert_allclose(slope, cdf, atol=1e-3, err_msg="the derivative of the mean is the mean derivative")
  np.testing.assert_allclose((h == 0).mean(0), 1 - cdf, atol=1e-3)


def test_a_hard_forward_keeps_its_value_to_the_bit():
  soft = jax.random.uniform(jax.random.key(0), (1000,))
  np.testing.assert_array_equal(hard_forward(jnp.ones(1000), soft), 1)
  np.testing.assert_array_equal(hard_forward(jnp.zeros(1000), soft), 0)


# A mixture of two linear experts, o_e(x) = w_e . x. A gate draws one of them; the loss is (y - o)^2.


class Mixture:
  """40 points of 3 features whose target is one expert's output, chosen by a gate other than the one to be learned.

  `loss(h)` `[points]` is that of weight h for the second expert and 1 - h for the first.
  """

  def __init__(self, seed: int = 0, offset: float = 0.0):
    rng = np.random.default_rng(seed)
    self.x = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    experts, right, gate = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3), 3, 3))
    self.outputs = experts @ self.x.T + offset
    self.target = jnp.where(self.x @ right > 0, self.outputs[1], self.outputs[0])
    self.gate = gate

  def combined(self, weights) -> jax.Array:
    """`[points]`, loss of `weights` `[2, points]`."""
    return jnp.square(self.target - (weights * self.outputs).sum(0))

  def loss(self, h) -> jax.Array:
    return self.combined(jnp.stack([1 - h, h]))

  def expected(self, gate) -> jax.Array:
    s = jax.nn.sigmoid(self.x @ gate)
    return ((1 - s) * self.loss(jnp.zeros(40)) + s * self.loss(jnp.ones(40))).sum()

  def exact(self) -> jax.Array:
    return jax.jit(jax.grad(self.expected))(self.gate)


def over_choices(mixture, surrogate) -> jax.Array:
  """Mean gradient with respect to the gate of `surrogate(gate, h)` `[points]` over h = 0, 1 drawn by the gate."""
  s = jax.nn.sigmoid(mixture.x @ mixture.gate)
  surrogates = lambda gate: (  # noqa: E731
    (1 - s) * surrogate(gate, jnp.zeros(40)) + s * surrogate(gate, jnp.ones(40))
  ).sum()
  return jax.jit(jax.grad(surrogates))(mixture.gate)


def dense_straight_through(mixture):
  return over_choices(mixture, lambda gate, h: mixture.loss(hard_forward(h, jax.nn.sigmoid(mixture.x @ gate))))


def sparse_straight_through(mixture):
  """Only the chosen expert is evaluated, with weight 1 + p - stop(p)."""

  def surrogate(gate, h):
    s = jax.nn.sigmoid(mixture.x @ gate)
    return mixture.combined(jnp.stack([(1 - h) * hard_forward(1 - h, 1 - s), h * hard_forward(h, s)]))

  return over_choices(mixture, surrogate)


def cosine(one, other) -> float:
  return float(jnp.vdot(one, other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other)))


def test_over_a_mixture_of_two_experts_straight_through_points_near_the_gradient():
  for mixture in map(Mixture, range(3)):
    for biased in (dense_straight_through, sparse_straight_through):
      assert 0.5 < cosine(biased(mixture), mixture.exact()) < 0.99


def test_dense_straight_through_follows_the_loss_of_the_mean_output():
  mixture = Mixture()
  of_mean = jax.grad(lambda gate: mixture.loss(jax.nn.sigmoid(mixture.x @ gate)).sum())(mixture.gate)
  np.testing.assert_allclose(dense_straight_through(mixture), of_mean, rtol=1e-4, atol=1e-4)


def test_an_offset_common_to_target_and_experts_turns_sparse_straight_through_around():
  """No loss depends on it, nor does the dense estimator; the sparse one sees a single output, not a difference."""
  near, far = Mixture(), Mixture(offset=5.0)
  np.testing.assert_allclose(far.exact(), near.exact(), rtol=1e-3)
  np.testing.assert_allclose(dense_straight_through(far), dense_straight_through(near), rtol=1e-3, atol=1e-3)
  assert cosine(sparse_straight_through(near), near.exact()) > 0.8
  assert cosine(sparse_straight_through(far), far.exact()) < -0.8


def test_noisy_rectifiers_are_unbiased_on_the_mixture_and_times_smooth_units_are_not():
  """Here a unit for each expert, independent of the other: both, or none, may be on."""
  mixture, grid = Mixture(), (jnp.arange(30) + 0.5) / 30
  draws = jnp.stack(jnp.meshgrid(grid, grid)).reshape(2, -1, 1).swapaxes(0, 1)  # both units' uniform numbers
  gates = jnp.stack([-mixture.gate, mixture.gate])
  activation = lambda gates: gates @ mixture.x.T  # noqa: E731

  def mean_loss(unit, gates, draws):
    return jax.vmap(lambda draw: mixture.combined(unit(activation(gates), draw)))(draws).mean(0).sum()

  def exact_loss_of_smooth(gates):
    root = firing_probability(activation(gates))
    on = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])[..., None]
    probability = jnp.where(on == 1, root, 1 - root).prod(1)
    return (probability * jax.vmap(lambda on: mixture.combined(on * root))(on)).sum()

  rectified = functools.partial(mean_loss, noisy_rectifier, draws=jax.scipy.stats.norm.ppf(draws))
  value, pull = jax.vjp(jax.jit(rectified), gates)
  direction, step = jax.random.normal(jax.random.key(0), gates.shape), 1e-2
  difference = rectified(gates + step * direction) - rectified(gates - step * direction)
  slope = float(jnp.vdot(pull(jnp.ones_like(value))[0], direction))
  assert slope == pytest.approx(float(difference) / (2 * step), rel=0.02)

  smooth = jax.jit(jax.grad(lambda gates: mean_loss(stochastic_times_smooth, gates, draws)))(gates)
  exact = jax.jit(jax.grad(exact_loss_of_smooth))(gates)
  assert 0.9 < cosine(smooth, exact) < 0.999
  assert float(jnp.linalg.norm(smooth) / jnp.linalg.norm(exact)) == pytest.approx(0.5, abs=0.1)
