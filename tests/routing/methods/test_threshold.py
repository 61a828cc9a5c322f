"""Thresholds that follow the cutoffs of expert choice, and look at no other token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.routing import RaggedRouting, RouterConfig, Site
from moe.routing.methods.expert_choice import expert_choice
from moe.routing.methods.threshold import cutoffs, moving_average
from tests.routing.naive import inputs_of, learn, make, of_sequences, random_tokens, route, routing_of

BATCH, LENGTH = 4, 64


def run(router, tokens, *, training=False):
  """Bool `[B, T, E]`, who takes whom; in training the router's state moves."""
  graph, state = nnx.split(router)
  inputs = inputs_of(tokens, router.config.groups(*tokens.shape[:2]))
  routing, state = compiled(graph, state, inputs, training=training)
  nnx.update(router, state)
  return ~np.isnan(of_sequences(routing, *tokens.shape[:2]))


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def compiled(graph, state, inputs, *, training):
  router = nnx.merge(graph, state)
  (output,) = learn(router, inputs) if training else [router(inputs, training=False)]
  return output.routing, nnx.state(router)


def scores_of(groups, n, seed=0):
  return jax.nn.softmax(jax.random.normal(jax.random.key(seed), (groups, n, 4)))


def test_cutoffs_are_the_kth_largest_scores_of_all_real_tokens_together():
  scores, mask = scores_of(3, 20), jnp.arange(60).reshape(3, 20) % 5 != 0  # 48 real tokens
  found = cutoffs(scores, mask, capacity_factor=1.5)
  real = np.sort(np.asarray(scores)[np.asarray(mask)], axis=0)[::-1]
  np.testing.assert_array_equal(found, real[48 * 3 // 8 - 1])
  np.testing.assert_array_equal(cutoffs(scores, jnp.zeros_like(mask), 1.5), [-1] * 4)


def test_the_average_is_the_exponential_one_without_its_bias():
  values, decay = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), 0.9
  average, biased = jnp.full(3, 123.0), np.zeros(3)
  for step, value in enumerate(values):
    average = moving_average(average, value, jnp.int32(step), decay)
    biased = decay * biased + (1 - decay) * value
    np.testing.assert_allclose(average, biased / (1 - decay ** (step + 1)), rtol=1e-4, atol=1e-5)


def test_on_stationary_scores_every_expert_takes_its_share_of_new_tokens():
  router = make("threshold", slack=None)
  for seed in range(30):
    run(router, random_tokens(BATCH, LENGTH, seed=seed), training=True)
  n = 16 * BATCH * LENGTH
  taken = np.mean([run(router, random_tokens(BATCH, LENGTH, seed=100 + seed)).mean((0, 1)) for seed in range(16)], 0)
  # Sampling errors of the new tokens, and of the 30 batches that made the threshold.
  error = np.sqrt(0.5 * 0.5 * (1 / n + 1 / (30 * BATCH * LENGTH)))
  np.testing.assert_allclose(taken, 0.5, atol=4 * error)


def test_experts_that_took_too_many_raise_their_thresholds_and_idle_ones_lower_them():
  router, tokens = make("threshold", slack=None), random_tokens(BATCH, LENGTH)
  run(router, tokens, training=True)
  before = jnp.array([1e-6, 1e-4, 0.9, 0.999])
  router.threshold[...] = before
  share = run(router, tokens, training=True).mean((0, 1))
  np.testing.assert_array_equal(np.sign(share - 0.5), [1, 1, -1, -1])
  np.testing.assert_array_equal(np.sign(router.threshold[...] - before), [1, 1, -1, -1])


def test_a_step_decides_by_the_thresholds_before_it_and_the_first_by_indifference():
  router, tokens = make("threshold", slack=None), random_tokens(BATCH, LENGTH)
  np.testing.assert_array_equal(router.threshold[...], [0.25] * 4)
  scores = np.asarray(jax.nn.softmax(tokens @ router.kernel[...]))
  np.testing.assert_array_equal(run(router, tokens, training=True), scores > 0.25)
  np.testing.assert_allclose(router.threshold[...], np.sort(scores.reshape(-1, 4), axis=0)[-128], rtol=1e-5)
  assert int(router.step[...]) == 1
  np.testing.assert_array_equal(make("threshold", gate="sigmoid").threshold[...], [0.5] * 4)


def test_evaluation_and_batches_of_padding_leave_the_thresholds():
  router, tokens = make("threshold"), random_tokens(BATCH, LENGTH)
  run(router, tokens, training=True)
  held = np.asarray(router.threshold[...])
  run(router, 2 * tokens)
  nothing = inputs_of(tokens, router.config.groups(BATCH, LENGTH), jnp.zeros((BATCH, LENGTH), bool))
  _, after = compiled(*nnx.split(router), nothing, training=True)
  np.testing.assert_array_equal(router.threshold[...], held)
  np.testing.assert_array_equal(after["threshold"][...], held)
  assert int(after["step"][...]) == 1


def test_the_warm_up_is_expert_choice_over_the_batch():
  router, tokens = make("threshold", warmup_steps=2, slack=None), random_tokens(BATCH, LENGTH)
  plain = ~np.isnan(of_sequences(routing_of(make("expert_choice"), tokens), BATCH, LENGTH))
  assert (run(router, tokens) != plain).any()
  for _ in range(2):
    np.testing.assert_array_equal(run(router, tokens, training=True), plain)
  other = 2 * tokens
  thresholds = np.asarray(router.threshold[...])
  scores = np.asarray(jax.nn.softmax(other @ router.kernel[...]))
  np.testing.assert_array_equal(run(router, other, training=True), scores > thresholds)


@pytest.mark.parametrize("training", [True, False])
def test_only_the_warm_up_sees_other_tokens(training):
  tokens = random_tokens(3, 16)
  for steps in (0, 3):
    router = make("threshold", warmup_steps=steps)
    function = lambda x: of_sequences(routing_of(router, x, training=training), 3, 16)  # noqa: E731, B023
    causal = router.config.is_causal(training=training)
    assert causal == (steps == 0 or not training)
    assert (future_leak(function, tokens, 8, jax.random.key(0)) == 0) == causal
    assert (company_leak(function, tokens, jax.random.key(1)) == 0) == causal


def test_an_exact_threshold_and_expert_choice_differ_by_the_fluctuation_of_the_count():
  """The mean of |Bin(n, p) - n p| / n is sqrt(2 p (1 - p) / (pi n)): 0.0109 for n = 585 and p = 1 / 13."""
  n, p, trials = 585, 1 / 13, 2000
  scores = jax.random.uniform(jax.random.key(0), (trials, n, 1))

  @jax.jit
  def differences(scores):
    def one(s):
      token = expert_choice(s, jnp.ones(n, bool), 45).token[0]
      return (jnp.zeros(n, bool).at[token].set(True) ^ (s[:, 0] > 1 - p)).mean()

    return jax.lax.map(one, scores)

  found, expected = np.asarray(differences(scores)), np.sqrt(2 * p * (1 - p) / (np.pi * n))
  assert found.mean() == pytest.approx(expected, abs=3 * found.std() / np.sqrt(trials) + 0.01 * expected)


def test_an_expert_has_slots_for_twice_its_share_of_a_sequence_the_first_ones_first():
  router, tokens = make("threshold", capacity_factor=1.0), random_tokens(2, 16)
  router.threshold[...] = jnp.zeros(4)  # everybody wants everything
  routing = routing_of(router, tokens)
  np.testing.assert_array_equal(routing.token, np.broadcast_to(np.arange(8), (2, 4, 8)))
  assert isinstance(routing_of(make("threshold", slack=None), tokens), RaggedRouting)


def test_gates_are_softmax_or_sigmoid_and_can_be_made_to_sum_to_one():
  tokens = random_tokens(2, 16)
  router = make("threshold", gate="sigmoid", slack=None)
  logits = np.asarray(tokens @ router.kernel[...])
  weights = of_sequences(routing_of(router, tokens), 2, 16)
  np.testing.assert_allclose(weights, np.where(logits > 0, 1 / (1 + np.exp(-logits)), np.nan), rtol=1e-4)
  output = route(make("threshold", renormalize=True, z_loss=0.5, slack=None), tokens, training=True)
  total = np.nansum(of_sequences(output.routing, 2, 16), -1)
  np.testing.assert_allclose(total[total > 0], 1, rtol=1e-5)
  assert float(output.auxiliary_loss) == pytest.approx(0.5 * float(output.losses["z"]))


def test_the_gradient_is_that_of_the_gates_and_not_of_the_thresholds():
  router, tokens = make("threshold", gate="sigmoid"), random_tokens(2, 16)
  graph, kernel, state = nnx.split(router, nnx.Param, ...)
  gain = jax.random.normal(jax.random.key(0), (2, 4, 17))

  def value(kernel):
    routing = routing_of(nnx.merge(graph, kernel, state), tokens, training=True)
    return (routing.weight * jnp.take_along_axis(gain, routing.token, axis=-1)).sum()

  gradient = jax.grad(value)(kernel)["kernel"][...]
  direction, step = jax.random.normal(jax.random.key(1), gradient.shape), 1e-3
  shifted = lambda by: jax.tree.map(lambda k: k + by * direction, kernel)  # noqa: E731
  slope = (value(shifted(step)) - value(shifted(-step))) / (2 * step)
  assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.01, abs=2e-3)


def test_options_that_cannot_be_are_refused():
  choice = RouterConfig.choices["threshold"]
  with pytest.raises(ConfigError, match=r"capacity_factor = 9\.0: expected at most the 8 experts"):
    choice(capacity_factor=9.0).check(Site(8, 8), 2, 16)
  for field, value in (("decay", 0.0), ("warmup_steps", -1), ("slack", 0.5)):
    with pytest.raises(ConfigError, match=f"{field} = {value}"):
      choice(**{field: value})
  with pytest.raises(ConfigError, match="eval_capacity_factor = 2"):
    choice(slack=None, eval_capacity_factor=2.0)
