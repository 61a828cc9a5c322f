"""Expert choice among the tokens at a position: exact loads, and a budget that follows the tokens there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.routing import RouterConfig, RouterInput, Site
from tests.routing.naive import make, of_sequences, random_tokens, routing_of, with_kernel

BATCH, LENGTH = 6, 8


def weights_of(router, tokens, training=False, mask=None):
  """`[B, T, E]`, NaN where an expert does not take a token."""
  batch, length, _ = tokens.shape
  return of_sequences(routing_of(router, tokens, training=training, mask=mask), batch, length, by_position=True)


def test_every_expert_takes_exactly_k_tokens_at_every_position():
  taken = ~np.isnan(weights_of(make("position_grouped"), random_tokens(BATCH, LENGTH)))
  np.testing.assert_array_equal(taken.sum(0), np.full((LENGTH, 4), 3))


def test_at_a_position_it_is_expert_choice_over_the_batch():
  tokens = random_tokens(BATCH, LENGTH)
  together = weights_of(make("position_grouped"), tokens)
  for position in (0, 5):
    routing = routing_of(make("expert_choice"), tokens[:, position : position + 1])
    np.testing.assert_allclose(together[:, position], of_sequences(routing, BATCH, 1)[:, 0], rtol=1e-6)


def test_the_budget_is_counted_from_the_sequences_that_go_on():
  mask = jnp.arange(LENGTH) < jnp.array([8, 8, 7, 6, 5, 4])[:, None]
  taken = ~np.isnan(weights_of(make("position_grouped", capacity_factor=1.0), random_tokens(BATCH, LENGTH), mask=mask))
  real = np.asarray(mask.sum(0))
  np.testing.assert_array_equal(taken.sum(0), np.repeat(np.floor(real / 4 + 0.5)[:, None], 4, axis=1))
  assert not taken[~np.asarray(mask)].any()


def test_in_evaluation_a_lone_sequence_has_experts_too():
  router, tokens = make("position_grouped", capacity_factor=1.0), random_tokens(1, LENGTH)
  assert not np.isnan(weights_of(router, tokens)).any()
  state = router.init_decode_state(1, LENGTH)
  output, _ = router.decode(RouterInput(tokens[:, :1], jnp.ones((1, 1), bool)), state)
  np.testing.assert_allclose(output.routing.weight.sum(), 1, rtol=1e-6)


def test_it_sees_its_company_but_neither_its_future_nor_other_positions():
  router, tokens = make("position_grouped"), random_tokens(4, 12)
  for training in (True, False):
    function = lambda x: weights_of(router, x, training)  # noqa: E731, B023
    assert future_leak(function, tokens, 6, jax.random.key(0)) == 0
    assert company_leak(function, tokens, jax.random.key(1)) > 0
  changed = weights_of(router, tokens.at[:, 5].set(0.0))
  others = np.arange(12) != 5
  np.testing.assert_array_equal(changed[:, others], weights_of(router, tokens)[:, others])


def test_weights_can_be_made_to_sum_to_one():
  weights = weights_of(make("position_grouped", renormalize=True), random_tokens(BATCH, LENGTH))
  total = np.nansum(weights, -1)
  np.testing.assert_allclose(total[total > 0], 1, rtol=1e-6)


def test_the_gradient_is_that_of_the_chosen_scores():
  router, tokens = make("position_grouped"), random_tokens(4, 6)
  gain = jax.random.normal(jax.random.key(0), (6, 4, 4 + 1))

  def value(kernel):
    routing = routing_of(with_kernel(router, kernel), tokens, training=True)
    return (routing.weight * jnp.take_along_axis(gain, routing.token, axis=-1)).sum()

  kernel = router.kernel[...]
  direction, step = jax.random.normal(jax.random.key(1), kernel.shape), 2e-3
  slope = (value(kernel + step * direction) - value(kernel - step * direction)) / (2 * step)
  assert float((jax.grad(value)(kernel) * direction).sum()) == pytest.approx(float(slope), rel=0.01, abs=2e-3)


def test_too_few_sequences_are_refused_with_the_number_that_is_needed():
  choice = RouterConfig.choices["position_grouped"]
  with pytest.raises(ConfigError, match=r"capacity_factor = 2\.0: .* at least 16 sequences .* a capacity factor of 4"):
    choice().check(Site(8, 32), batch=8, length=128)
  choice().check(Site(8, 32), batch=16, length=128)
  with pytest.raises(ConfigError, match=r"capacity_factor = 5\.0: expected at most the 4 experts"):
    choice(capacity_factor=5.0).check(Site(8, 4), batch=16, length=128)


def test_a_group_size_is_no_option_of_it():
  with pytest.raises(ConfigError, match=r"config\.group_size = 8: unknown field"):
    build(RouterConfig, {"name": "position_grouped", "group_size": 8})
