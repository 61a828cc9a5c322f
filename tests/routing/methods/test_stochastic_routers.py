"""Routers that draw their choices: random in training, deterministic in evaluation, blind to all other tokens.

Those of independent units are here in full; the top-1 ones in `test_sampled_routers.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError, build
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.stochastic_units import sparsity_loss
from tests.routing.descent import descend
from tests.routing.naive import NUM_EXPERTS, make, of_sequences, random_tokens, route, routing_of
from tests.routing.test_decode import decoded

BATCH, LENGTH = 4, 16
KEY = jax.random.key(3)
TIGHT = {"capacity_factor": 1.0, "eval_capacity_factor": 0.75}
ROOM = {"capacity_factor": 1.0, "eval_capacity_factor": 4.0}
RANDOM = ("noisy_rectifier", "stochastic_times_smooth", "straight_through", "reinforce", "rl_r")
VARIANTS = [
  ("noisy_rectifier", TIGHT),
  ("stochastic_times_smooth", TIGHT | {"evaluation": "threshold"}),
  ("straight_through", {"dense_backward": True}),
  ("reinforce", TIGHT),
]


def weights_of(router, tokens, *, training, key=KEY):
  """`[B, T, E]`, NaN where an expert does not see a token."""
  return of_sequences(routing_of(router, tokens, training=training, key=key), *tokens.shape[:2])


def logits_of(router, tokens):
  return tokens @ router.kernel[...]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_with_slots_too_they_see_neither_the_future_nor_other_sequences(name, options, training):
  router, tokens = make(name, **options), random_tokens(BATCH, LENGTH)
  function = lambda tokens: weights_of(router, tokens, training=training)  # noqa: E731
  assert future_leak(function, tokens, 9, jax.random.key(7)) == 0
  assert company_leak(function, tokens, jax.random.key(8)) == 0


@pytest.mark.parametrize(("name", "options"), VARIANTS[:2])
def test_with_slots_decoding_equals_routing_the_whole_sequence(name, options):
  router, tokens = make(name, **options), random_tokens(3, 20)
  mask = jax.random.bernoulli(jax.random.key(5), 0.85, (3, 20))
  whole = of_sequences(routing_of(router, tokens, mask=mask), 3, 20)
  np.testing.assert_allclose(decoded(router, tokens, mask), whole, rtol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_training_is_random_and_needs_a_key_evaluation_is_neither(name):
  router, tokens = make(name), random_tokens(BATCH, LENGTH)
  one, other = (weights_of(router, tokens, training=True, key=jax.random.key(seed)) for seed in range(2))
  assert (np.isnan(one) != np.isnan(other)).any()
  weights_of(router, tokens, training=False, key=None)
  with pytest.raises(
    ValueError, match=r"RouterInput\.key = None: expected a key, as .* draws random numbers in training"
  ):
    weights_of(router, tokens, training=True, key=None)


def test_the_deterministic_ones_need_no_key_in_training():
  for name, options in (("noisy_rectifier", {"noise": 0.0}), ("straight_through", {"sample": False})):
    router, tokens = make(name, **options), random_tokens(2, 8)
    training, evaluation = (weights_of(router, tokens, training=mode, key=None) for mode in (True, False))
    np.testing.assert_array_equal(training, evaluation)


# Noisy rectifier.


def test_a_rectifier_is_on_where_its_noisy_activation_is_positive_with_that_weight():
  router, tokens = make("noisy_rectifier", noise=0.7), random_tokens(BATCH, LENGTH)
  router.bias[...] = jnp.array([0.5, 0.0, -1.0, -100.0])
  activation = logits_of(router, tokens) + router.bias[...]
  noisy = activation + 0.7 * jax.random.normal(KEY, activation.shape)
  for training, expected in ((True, noisy), (False, activation)):
    expected = jnp.where(expected > 0, expected, jnp.nan)
    np.testing.assert_allclose(weights_of(router, tokens, training=training), expected, rtol=1e-4, atol=1e-5)


def test_the_l1_loss_is_the_mean_weight_of_a_real_token():
  router, tokens, mask = make("noisy_rectifier", l1_loss=0.5), random_tokens(2, 8), jnp.arange(16).reshape(2, 8) % 3 > 0
  output = route(router, tokens, mask=mask)
  expected = np.maximum(logits_of(router, tokens) + router.bias[...], 0).sum(-1)[np.asarray(mask)].mean()
  assert float(output.losses["l1"]) == pytest.approx(float(expected), rel=1e-5)
  assert float(output.auxiliary_loss) == pytest.approx(0.5 * float(expected), rel=1e-5)


# Stochastic times smooth.


def test_times_smooth_is_on_with_probability_sqrt_p_weight_sqrt_p_and_mean_p():
  router = make("stochastic_times_smooth", active_experts=1.0)
  tokens = jnp.broadcast_to(random_tokens(1, 1), (40, 100, 8))
  weights = np.nan_to_num(weights_of(router, tokens, training=True))
  p = np.asarray(jax.nn.sigmoid(logits_of(router, tokens[0, 0]) + router.bias[...]))
  error = np.sqrt(np.sqrt(p) * (1 - np.sqrt(p)) / 4000)
  assert (np.abs((weights > 0).mean((0, 1)) - np.sqrt(p)) < 4 * error).all()
  for expert in range(NUM_EXPERTS):
    on = weights[..., expert][weights[..., expert] > 0]
    np.testing.assert_allclose(on, np.sqrt(p[expert]), rtol=1e-5)
  assert (np.abs(weights.mean((0, 1)) - p) < 4 * error).all()


def test_times_smooth_starts_at_the_number_of_experts_asked_for():
  router = RouterConfig.choices["stochastic_times_smooth"](active_experts=1.5)
  output = route(router.make(Site(8, 6), nnx.Rngs(0)), random_tokens(40, 50), training=True, key=KEY)
  assert float(output.metrics["capacity_factor"]) == pytest.approx(1.5, rel=0.05)
  assert float(output.losses["sparsity"]) < 1e-3


def test_times_smooth_is_evaluated_by_expectation_or_by_threshold():
  tokens = random_tokens(2, 16)
  router = make("stochastic_times_smooth")
  p = jax.nn.sigmoid(logits_of(router, tokens) + router.bias[...])
  np.testing.assert_allclose(weights_of(router, tokens, training=False), p, rtol=1e-4)
  router = make("stochastic_times_smooth", evaluation="threshold")
  on = jnp.where(jnp.sqrt(p) > 0.5, jnp.sqrt(p), jnp.nan)
  assert jnp.isnan(on).any()
  np.testing.assert_allclose(weights_of(router, tokens, training=False), on, rtol=1e-4)


def test_the_sparsity_loss_is_the_divergence_from_the_target_rate():
  assert float(sparsity_loss(jnp.full(4, 0.25), 0.25)) == pytest.approx(0, abs=1e-6)
  divergence = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
  assert float(sparsity_loss(jnp.array([0.25, 0.5]), 0.25)) == pytest.approx(divergence / 2, rel=1e-5)
  slope = jax.grad(sparsity_loss)(jnp.array([0.1, 0.25, 0.9]), 0.25)
  np.testing.assert_array_equal(jnp.sign(jnp.where(jnp.abs(slope) < 1e-6, 0, slope)), [-1, 0, 1])
  assert np.isfinite(sparsity_loss(jnp.array([0.0, 1.0]), 0.25))


def test_the_sparsity_loss_brings_all_experts_to_the_target():
  router, tokens = make("stochastic_times_smooth", active_experts=1.0), random_tokens(4, 16)
  router.bias[...] = jnp.array([2.0, 0.0, -3.0, -6.0])
  inputs = RouterInput(tokens, jnp.ones((4, 16), bool))
  router = descend(router, lambda router, key: router(inputs, training=False).losses["sparsity"], 300, 0.1)
  rate = jnp.sqrt(jax.nn.sigmoid(logits_of(router, tokens) + router.bias[...])).mean((0, 1))
  np.testing.assert_allclose(rate, 0.25, atol=0.02)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("noisy_rectifier", {"noise": -1.0}, r"noise = -1\.0: expected at least 0"),
    ("stochastic_times_smooth", {"active_experts": 0.0}, r"active_experts = 0\.0: expected more than 0"),
    ("stochastic_times_smooth", {"active_experts": 4.0}, r"active_experts = 4\.0: expected less than the 4 experts"),
    ("stochastic_times_smooth", {"capacity_factor": 2.0}, r"capacity_factor = 2\.0: every token goes to all 4"),
    ("straight_through", {"dense_backward": True, "capacity_factor": 2.0}, r"capacity_factor = 2\.0: every token"),
    ("reinforce", {"policy_loss": -1.0}, r"policy_loss = -1\.0: expected at least 0"),
    ("rl_r", {"nucleus": 0.0}, r"nucleus = 0\.0: expected more than 0 and at most 1"),
  ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
  with pytest.raises(ConfigError, match=message):
    config = build(RouterConfig, {"name": name, **options})
    config.check(Site(8, 4), batch=2, length=8)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("stochastic_times_smooth", {"evaluation": "threshold", "capacity_factor": 2.0}),
    ("stochastic_times_smooth", ROOM),
    ("straight_through", {"dense_backward": True, "capacity_factor": 4.0, "eval_capacity_factor": 1.0}),
  ],
)
def test_slots_for_all_are_asked_for_only_where_all_experts_are_evaluated(name, options):
  config = build(RouterConfig, {"name": name, **options})
  config.check(Site(8, 4), batch=2, length=8)


@pytest.mark.parametrize("name", ["noisy_rectifier", "stochastic_times_smooth", "adaptive_mixture"])
def test_the_gradient_agrees_with_finite_differences_away_from_ties(name):
  router, tokens = make(name), random_tokens(2, 8)
  graph, params = nnx.split(router)
  rng = np.random.default_rng(0)
  gain = jnp.asarray(rng.normal(size=(9, NUM_EXPERTS)), jnp.float32)
  direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def value(params):
    output = nnx.merge(graph, params)(RouterInput(tokens, jnp.ones((2, 8), bool), key=KEY), training=True)
    routing = output.routing
    expert = jax.vmap(lambda sizes: jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(8 * NUM_EXPERTS), side="right"))(
      routing.group_sizes
    )
    return (routing.weight * gain.at[routing.token, expert].get(mode="clip")).sum() + output.auxiliary_loss, routing

  def moved(step):
    return value(jax.tree.map(lambda p, d: p + step * d, params, direction))[0]

  gradient, (higher, one), (lower, other) = value(params)[1], moved(1e-3), moved(-1e-3)
  np.testing.assert_array_equal(one.token, other.token, err_msg="the step crosses a tie")
  slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
  assert float(slope) == pytest.approx(float(higher - lower) / 2e-3, rel=0.02, abs=5e-3)
