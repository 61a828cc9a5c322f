"""Appendix F of Shazeer et al. 2017: balanced masks in training, and thresholds that learn to stand in for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.routing import RouterConfig, Site
from moe.routing.methods.expert_choice import expert_choice
from moe.routing.methods.strictly_balanced import batchwise_mask, threshold_loss
from tests.routing.differences import assert_gradient_is_the_difference_quotient
from tests.routing.naive import make, of_sequences, random_tokens, route, routing_of

TOKENS, EXPERTS, M = 24, 4, 9
SCORES = jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(TOKENS, EXPERTS)), jnp.float32))
DESCENDING = jnp.sort(SCORES, axis=0, descending=True)
REAL = jnp.ones((1, TOKENS), bool)
BATCHWISE = batchwise_mask(expert_choice(SCORES, REAL[0], M), TOKENS)


@jax.jit
def loss(thresholds, scores=SCORES):
  return threshold_loss(scores[None], thresholds, BATCHWISE[None], REAL)


def test_the_batchwise_mask_has_the_m_highest_of_every_column():
  np.testing.assert_array_equal(BATCHWISE, DESCENDING[M - 1] <= SCORES)


def test_the_loss_is_never_negative_and_zero_exactly_where_the_masks_agree():
  assert float(loss((DESCENDING[M - 1] + DESCENDING[M]) / 2)) == 0
  rng = np.random.default_rng(1)
  for thresholds in rng.uniform(0, 1, size=(20, EXPERTS)):
    agree = ((thresholds < SCORES) == BATCHWISE).all()
    assert float(loss(jnp.asarray(thresholds, jnp.float32))) > 0 or agree


def test_the_loss_is_the_sum_of_the_distances_of_the_scores_that_the_masks_disagree_on():
  thresholds = jnp.full(EXPERTS, 0.3)
  wrong = (thresholds < SCORES) != BATCHWISE
  assert float(loss(thresholds)) == pytest.approx(float((wrong * jnp.abs(SCORES - 0.3)).sum()) / TOKENS, rel=1e-5)


def test_a_threshold_has_the_gradient_of_how_many_too_few_pass_it():
  thresholds = jnp.array([0.0, 0.2, 0.4, 1.0])
  passing = (thresholds < SCORES).sum(0)
  np.testing.assert_allclose(jax.grad(loss)(thresholds), (M - passing) / TOKENS, atol=1e-6)


def test_descent_raises_a_threshold_that_too_many_pass_and_ends_between_two_order_statistics():
  step = jax.jit(lambda thresholds, rate: thresholds - rate * jax.grad(loss)(thresholds))
  first = step(jnp.array([0.0, 0.0, 1.0, 1.0]), 0.1)
  assert (first[:2] > 0).all() and (first[2:] < 1).all()
  thresholds = first
  for i in range(400):
    thresholds = step(thresholds, 0.1 / (1 + i / 10))
  assert (jnp.abs((thresholds < SCORES).sum(0) - M) <= 1).all()


def test_training_chooses_as_expert_choice_does_and_renormalises_the_gates():
  router, published = make("strictly_balanced"), make("expert_choice", renormalize=True)
  tokens = random_tokens(2, 16)
  mine, theirs = (of_sequences(routing_of(r, tokens, training=True), 2, 16) for r in (router, published))
  np.testing.assert_allclose(mine, theirs, rtol=1e-6)
  np.testing.assert_array_equal((~np.isnan(mine)).sum((0, 1)), 16)
  total = np.nansum(mine, axis=-1)
  np.testing.assert_allclose(total[total > 0], 1, rtol=1e-5)


def test_evaluation_takes_every_expert_whose_threshold_is_exceeded():
  router, tokens = make("strictly_balanced"), random_tokens(2, 16)
  thresholds = jnp.array([0.1, 0.3, 0.5, 0.9])
  router.thresholds[...] = thresholds
  weights = of_sequences(routing_of(router, tokens), 2, 16)
  scores = np.asarray(jax.nn.softmax(tokens @ router.kernel[...]))
  chosen = scores > np.asarray(thresholds)
  assert {0, 1, 2} <= set(chosen.sum(-1).ravel())
  np.testing.assert_array_equal(~np.isnan(weights), chosen)
  share = scores * chosen / np.maximum((scores * chosen).sum(-1, keepdims=True), 1e-9)
  np.testing.assert_allclose(np.nan_to_num(weights), share, rtol=1e-5)


def test_thresholds_between_the_order_statistics_make_evaluation_choose_as_training_did():
  router, tokens = make("strictly_balanced"), random_tokens(2, 16)
  ordered = jnp.sort(jax.nn.softmax(tokens @ router.kernel[...]).reshape(32, EXPERTS), axis=0, descending=True)
  router.thresholds[...] = (ordered[15] + ordered[16]) / 2
  trained, evaluated = (of_sequences(routing_of(router, tokens, training=mode), 2, 16) for mode in (True, False))
  np.testing.assert_allclose(trained, evaluated, rtol=1e-5)


def test_padding_enters_neither_the_choice_nor_the_loss():
  router, tokens = make("strictly_balanced", group_size=16), random_tokens(2, 16)
  mask = jnp.arange(16)[None] < jnp.array([11, 16])[:, None]
  output = route(router, tokens, training=True, mask=mask)
  garbage = route(router, jnp.where(mask[..., None], tokens, 100.0), training=True, mask=mask)
  assert float(output.losses["threshold"]) == pytest.approx(float(garbage.losses["threshold"]), rel=1e-5)
  np.testing.assert_array_equal(output.routing.token, garbage.routing.token)
  assert np.isnan(of_sequences(output.routing, 2, 16)[0, 11:]).all()


def test_kernel_and_thresholds_have_the_gradient_of_finite_differences():
  router = make("strictly_balanced", threshold_loss=0.5)
  router.thresholds[...] = jnp.array([0.1, 0.2, 0.3, 0.4])
  assert_gradient_is_the_difference_quotient(router, random_tokens(2, 8), step=1e-3)


def test_it_is_causal_and_independent_of_the_batch_in_evaluation_alone():
  config = build(RouterConfig, {"name": "strictly_balanced"})
  assert [config.is_causal(training=mode) for mode in (True, False)] == [False, True]
  assert [config.is_batch_independent(16, training=mode) for mode in (True, False)] == [False, True]


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"capacity_factor": 0.0}, "capacity_factor = 0.0: expected more than 0"),
    ({"group_size": -1}, "group_size = -1: expected at least 0"),
    ({"threshold_loss": 0.0}, "threshold_loss = 0.0: expected more than 0"),
    ({"eval_capacity_factor": 1.0}, "eval_capacity_factor = 1.0: unknown field"),
  ],
)
def test_options_that_make_no_sense_are_refused_by_name(values, message):
  with pytest.raises(ConfigError) as error:
    build(RouterConfig, {"name": "strictly_balanced", **values}, "r")
  assert str(error.value).startswith(f"r.{message}")


def test_more_tokens_an_expert_than_there_are_is_refused():
  choice = RouterConfig.choices["strictly_balanced"]
  message = r"capacity_factor = 5\.0: expected from 0\.25 to 4: each expert would take 20 of a group's 16 tokens"
  with pytest.raises(ConfigError, match=message):
    choice(capacity_factor=5.0).check(Site(8, 4), batch=1, length=16)
