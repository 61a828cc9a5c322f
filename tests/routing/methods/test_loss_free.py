"""Balance by a bias: how it moves, what it may touch, and that it balances."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import linear_sum_assignment

from moe.config import ConfigError, build
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.loss_free import bias_by_quantile, bias_by_sign
from tests.routing.differences import assert_gradient_is_the_difference_quotient
from tests.routing.naive import inputs_of, learn, make, of_sequences, random_tokens, routing_of, token_weights

NAMES = ["loss_free", "quantile_balanced"]
EXPERTS, K = 16, 2


def static_scores(tokens: int = 4096, experts: int = EXPERTS) -> jax.Array:
  """Sigmoid scores with favourite experts."""
  rng = np.random.default_rng(2)
  logits = rng.normal(size=(tokens, experts)) + 0.7 * rng.normal(size=experts)
  return jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))


def load_of(scores, bias, k: int = K):
  choices = jax.lax.top_k(scores + bias, k)[1]
  return (choices[..., None] == jnp.arange(scores.shape[-1])).sum((0, 1))


def max_vio(scores, bias):
  load = load_of(scores, bias)
  return load.max() / load.mean() - 1


def everybody(scores):
  return jnp.ones(len(scores), bool)


def step(router, tokens, mask):
  """Weights `[B, T, E]` that a step of training on a batch `[B, T, d]` gives, and the bias after it."""
  routing, bias = _step(*nnx.split(router), tokens, mask)
  return of_sequences(routing, *mask.shape), bias


@functools.partial(jax.jit, static_argnames="graph")
def _step(graph, state, tokens, mask):
  router = nnx.merge(graph, state)
  (output,) = learn(router, inputs_of(tokens, router.config.groups(*mask.shape), mask))
  return output.routing, router.bias[...]


def test_the_sign_rule_lifts_experts_below_the_mean_and_lowers_those_above():
  bias = bias_by_sign(jnp.array([0.5, 0.0, 0.0, -0.5]), jnp.array([6, 4, 3, 3]), 0.01)
  np.testing.assert_allclose(bias, [0.49, 0.0, 0.01, -0.49], atol=1e-7)


def test_the_sign_rule_balances_static_scores_and_too_high_a_rate_keeps_oscillating():
  scores = static_scores()

  @jax.jit
  def violations(rate):
    def one(bias, _):
      return bias_by_sign(bias, load_of(scores, bias), rate), max_vio(scores, bias)

    return jax.lax.scan(one, jnp.zeros(EXPERTS), length=520)[1]

  slow, fast = violations(1e-3), violations(1e-2)
  assert slow[0] > 1
  assert slow[500:].max() < 0.04 and slow[100] > fast[100]
  assert 0.05 < fast[500:].mean() < 0.25


@pytest.mark.parametrize(("tokens", "real"), [(64, 64), (64, 50)])
def test_under_the_quantile_bias_every_expert_takes_as_many_were_the_tokens_bars_to_stay(tokens, real):
  scores, mask = static_scores(tokens), jnp.arange(tokens) < real
  before = jnp.linspace(-0.1, 0.1, EXPERTS)
  bias = bias_by_quantile(before, scores, mask, K)
  bars = jax.lax.top_k(scores + before, K + 1)[0][:, K]
  excess = np.asarray(scores + bias - bars[:, None])[np.asarray(mask)]
  # A common shift of the bars makes up for the mean that was taken out of the bias.
  shift = np.sort(excess, axis=0)[::-1][real * K // EXPERTS]
  np.testing.assert_allclose(shift, shift[0], atol=1e-6)
  more, at_least = (excess > shift + 1e-6).sum(0), (excess > shift - 1e-6).sum(0)
  # Tokens whose bar is this very expert stand level with it: their number is all that can be missing.
  assert (more <= real * K // EXPERTS).all() and (at_least > real * K // EXPERTS).all()
  assert (more == real * K // EXPERTS).mean() > 0.8
  assert float(bias.mean()) == pytest.approx(0, abs=1e-6)


def test_rounds_of_the_quantile_rule_balance_static_scores():
  scores, bias, violations = static_scores(), jnp.zeros(EXPERTS), []
  round_of = jax.jit(lambda bias: (max_vio(scores, bias), bias_by_quantile(bias, scores, everybody(scores), K)))
  for _ in range(6):
    violation, bias = round_of(bias)
    violations.append(float(violation))
  assert violations[0] > 1 and violations[1] < 0.4 and violations[5] < 0.06
  assert all(later < earlier for earlier, later in itertools.pairwise(violations))


def test_rounds_of_the_quantile_rule_descend_to_the_best_balanced_assignment():
  """Coordinate descent on the dual, which bounds what any balanced assignment reaches: an exact solver finds that."""
  tokens, experts = 48, 4
  scores = static_scores(tokens, experts)
  slots = np.repeat(np.asarray(scores, np.float64), tokens // experts, axis=1)
  best = slots[linear_sum_assignment(slots, maximize=True)].sum()

  def dual(bias):
    return float((scores + bias).max(-1).sum() - tokens / experts * bias.sum())

  bias, bounds = jnp.zeros(experts), []
  for _ in range(30):
    bounds.append(dual(bias))
    bias = bias_by_quantile(bias, scores, everybody(scores), 1)
  assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(bounds))
  assert best - 1e-4 <= bounds[-1] < best * 1.005 < bounds[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_bias_decides_who_is_chosen_and_enters_no_gate(name):
  router, tokens = make(name), random_tokens(2, 8)
  router.bias[...] = jnp.array([0.0, 0.0, -2.0, 2.0])
  weights = of_sequences(routing_of(router, tokens), 2, 8)
  assert not np.isnan(weights[..., 3]).any() and np.isnan(weights[..., 2]).all()
  chosen = ~np.isnan(weights)
  np.testing.assert_allclose(weights[chosen], jax.nn.sigmoid(tokens @ router.kernel[...])[chosen], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_uses_the_bias(name):
  router, tokens = make(name), random_tokens(6, 1)
  router.bias[...] = jnp.array([0.0, 0.3, -0.3, 0.1])
  whole = of_sequences(routing_of(router, tokens), 6, 1)
  output, _ = router.decode(RouterInput(tokens.swapaxes(0, 1), jnp.ones((1, 6), bool)), {})
  np.testing.assert_allclose(token_weights(output.routing, 6, 4)[0], whole[:, 0], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capacity_factor", [None, 0.5])
def test_a_step_decides_by_the_bias_before_it_and_learns_from_all_real_tokens_before_any_is_dropped(
  name, capacity_factor
):
  router, tokens = make(name, capacity_factor=capacity_factor), random_tokens(3, 16)
  mask = jnp.arange(16)[None] < jnp.array([16, 9, 12])[:, None]
  before = jnp.array([0.1, -0.1, 0.05, -0.05])
  router.bias[...] = before
  still = of_sequences(routing_of(router, tokens, mask=mask), 3, 16)
  trained, after = step(router, tokens, mask)
  np.testing.assert_array_equal(np.isnan(trained), np.isnan(still))
  scores = jax.nn.sigmoid(tokens @ router.kernel[...])
  if name == "loss_free":
    expected = bias_by_sign(before, load_of(scores[mask], before), 0.001)
  else:
    expected = bias_by_quantile(before, scores[mask], jnp.ones(mask.sum(), bool), K)
  np.testing.assert_allclose(after, expected, atol=1e-6)
  assert (after != before).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_padding_leaves_the_bias_as_it_is(name):
  router = make(name)
  router.bias[...] = before = jnp.array([0.1, -0.1, 0.05, -0.05])
  _, after = step(router, random_tokens(3, 16), jnp.zeros((3, 16), bool))
  np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_gates(name):
  router = make(name, renormalize=True, balance_loss=0.1)
  router.bias[...] = jnp.array([0.0, 0.3, -0.3, 0.1])
  assert_gradient_is_the_difference_quotient(router, random_tokens(2, 8))


def test_options_that_make_no_sense_are_refused_by_name():
  with pytest.raises(ConfigError, match=r"r\.bias_rate = 0\.0: expected more than 0"):
    build(RouterConfig, {"name": "loss_free", "bias_rate": 0.0}, "r")
  choice = RouterConfig.choices["quantile_balanced"]
  with pytest.raises(ConfigError, match=r"top_k = 4: expected less than the 4 experts"):
    choice(top_k=4).check(Site(8, 4), batch=1, length=16)


def test_the_bias_can_be_added_to_raw_logits():
  router, tokens = make("quantile_balanced", bias_on="logits", top_k=1), random_tokens(2, 8)
  router.bias[...] = before = jnp.array([0.0, 0.0, -30.0, 2.0])
  logits = tokens @ router.kernel[...]
  weights, after = step(router, tokens, jnp.ones((2, 8), bool))
  chosen = np.argmax(logits + before, -1)
  np.testing.assert_array_equal(np.nanargmax(weights, -1), chosen)
  # The gates are still the sigmoids of the logits, without the bias.
  expected = np.take_along_axis(np.asarray(jax.nn.sigmoid(logits)), chosen[..., None], -1)[..., 0]
  np.testing.assert_allclose(np.nanmax(weights, -1), expected, rtol=1e-5)
  wanted = bias_by_quantile(before, logits.reshape(16, 4), jnp.ones(16, bool), 1)
  np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-5)
