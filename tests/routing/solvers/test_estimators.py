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
  minimum_variance_baseline,
  noisy_rectifier,
  reinforce_gradient,
  stochastic_times_smooth,
  straight_through,
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


# One Bernoulli unit: a = 0.4, L(1) = 3 and L(0) = 1.

ACTIVATION, LOSSES = jnp.float32(0.4), jnp.array([1.0, 3.0])  # by h


def one_unit():
  """Both outcomes h, their probabilities, and the exact gradient s (1 - s) (L(1) - L(0))."""
  s = jax.nn.sigmoid(ACTIVATION)
  return jnp.array([0.0, 1.0]), jnp.array([1 - s, s]), s * (1 - s) * (LOSSES[1] - LOSSES[0])


def test_reinforce_has_the_exact_mean_for_any_baseline_and_no_variance_for_the_best_one():
  h, probability, exact = one_unit()
  assert float(exact) == pytest.approx(0.480521, abs=1e-6)
  best = minimum_variance_baseline(h, jnp.full(2, ACTIVATION), LOSSES, probability)
  assert float(best) == pytest.approx(float(probability[0] * LOSSES[1] + probability[1] * LOSSES[0]))
  for baseline, variance in ((0.0, 0.7807), (float(probability @ LOSSES), 0.0374), (float(best), 0.0)):
    estimates = reinforce_gradient(h, ACTIVATION, LOSSES, baseline)
    assert float(probability @ estimates) == pytest.approx(float(exact), rel=1e-5)
    assert float(probability @ jnp.square(estimates - exact)) == pytest.approx(variance, abs=5e-5)
  np.testing.assert_allclose(estimates, exact, rtol=1e-5, err_msg="either outcome gives the gradient itself")


def test_the_mean_of_sampled_reinforce_gradients_is_within_four_standard_errors():
  _, _, exact = one_unit()
  fired = jax.random.bernoulli(jax.random.key(0), jax.nn.sigmoid(ACTIVATION), (100_000,)).astype(jnp.float32)
  loss = LOSSES[fired.astype(int)]
  for baseline in (0.0, 2.0):
    estimates = np.asarray(reinforce_gradient(fired, ACTIVATION, loss, baseline), float)
    assert abs(estimates.mean() - float(exact)) < 4 * estimates.std() / len(estimates) ** 0.5
  sampled = minimum_variance_baseline(fired, jnp.full(fired.shape, ACTIVATION), loss)
  assert float(sampled) == pytest.approx(1.80262, abs=0.01)


def test_each_unit_has_a_baseline_of_its_own_and_one_that_never_varies_the_mean_loss():
  activation = jnp.array([0.4, -200.0])  # the second never fires, nor does its (h - s)^2 differ from 0
  states, loss = jnp.array([[0.0, 0.0], [1.0, 0.0]]), LOSSES
  _, probability, _ = one_unit()
  found = minimum_variance_baseline(states, jnp.broadcast_to(activation, (2, 2)), loss, probability)
  np.testing.assert_allclose(found, [1.80262, float(probability @ LOSSES)], rtol=1e-5)


def test_the_best_baseline_has_less_variance_than_those_beside_it():
  """Three units share one loss: all eight states, each with its probability."""
  activation = jnp.array([0.4, -1.0, 2.0])
  states = jnp.array(np.indices((2, 2, 2)).reshape(3, -1).T, jnp.float32)  # [8, 3]
  s = jax.nn.sigmoid(activation)
  probability = jnp.where(states == 1, s, 1 - s).prod(1)
  loss = jnp.square(states @ jnp.array([1.0, -2.0, 0.5]) - 0.7)
  best = minimum_variance_baseline(states, jnp.broadcast_to(activation, states.shape), loss, probability)

  def variance(baseline):
    estimates = reinforce_gradient(states, activation, loss[:, None], baseline)
    return probability @ jnp.square(estimates - probability @ estimates)

  for shift in (-0.1, 0.1):
    assert (variance(best) < variance(best + shift)).all()


def test_straight_through_passes_on_the_gradient_of_its_output():
  unit = lambda a: straight_through(jnp.broadcast_to(a, GRID.shape), GRID)  # noqa: E731
  h, pull = jax.vjp(unit, logit(0.3))
  assert set(np.unique(h)) == {0.0, 1.0} and float(h.mean()) == pytest.approx(0.3, abs=1e-3)
  assert float(pull(jnp.full_like(h, 1 / h.size))[0]) == pytest.approx(1.0, rel=1e-4)
  # L = 2 h: the exact gradient is 2 * 0.3 * 0.7, of the same sign and 1 / (s (1 - s)) times smaller.
  linear = jax.grad(lambda a: (2 * unit(a)).mean())(logit(0.3))
  assert float(linear) == pytest.approx(2.0, rel=1e-4)
  # L = (h - 0.4)^2: exactly s (1 - s) (0.36 - 0.16) > 0, but 2 (s - 0.4) < 0 on average.
  assert float(jax.grad(lambda a: jnp.square(unit(a) - 0.4).mean())(logit(0.3))) == pytest.approx(-0.2, abs=1e-3)
