"""Prefix-rank expert choice: the loads that follow from independent ranks, and nothing of the future."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.routing import RaggedRouting, RouterConfig, RouterInput, Site
from moe.routing.methods.prefix_rank import (
  among_the_best,
  best_of_chosen,
  normalized_over_chosen,
  share_under_cap,
  spread_chance,
)
from moe.routing.solvers.ranks import Earlier, rank_among_earlier
from tests.routing.naive import (
  inputs_of,
  learn,
  make,
  of_sequences,
  random_tokens,
  routing_of,
  token_weights,
  with_kernel,
)

EXPERTS, LENGTH, SHARE, SEQUENCES = 8, 256, 0.25, 300
TIMES = np.arange(1, LENGTH + 1)[:, None]


@jax.jit
def loads(scores, chance):
  """`[S, E]`, tokens that experts take of sequences of scores `[S, T, E]`."""
  everything, positions = jnp.ones(LENGTH, bool), jnp.arange(LENGTH)
  take = lambda s: among_the_best(rank_among_earlier(s, everything, positions), SHARE, chance).sum(0)  # noqa: E731
  return jax.lax.map(take, scores)


def scores_of(sequences=SEQUENCES):
  return jax.random.normal(jax.random.key(0), (sequences, LENGTH, EXPERTS))


def test_the_load_of_exchangeable_scores_is_binomial_in_mean_and_variance():
  """At time t a rank is uniform on 0 ... t - 1, of which ceil(rho t - u) are taken, independently of the others."""
  chance = spread_chance(jnp.arange(LENGTH), EXPERTS)
  found = np.asarray(loads(scores_of(), chance))
  taken = np.clip(np.ceil(SHARE * TIMES - np.asarray(chance)), 0, TIMES) / TIMES
  mean, variance = taken.sum(0).mean(), (taken * (1 - taken)).sum(0).mean()
  assert mean == pytest.approx(SHARE * LENGTH, abs=0.5)
  assert variance == pytest.approx(LENGTH * SHARE * (1 - SHARE), rel=0.02)
  n = found.size
  assert found.mean() == pytest.approx(mean, abs=3 * np.sqrt(variance / n))
  assert found.var() == pytest.approx(variance, rel=3 * np.sqrt(2 / n))


def test_without_chance_it_takes_the_ceiling_and_so_too_many():
  found = np.asarray(loads(scores_of(100), jnp.zeros((LENGTH, EXPERTS))))
  expected = (np.ceil(SHARE * TIMES) / TIMES).sum()
  assert expected == pytest.approx(66.67, abs=0.01)
  assert found.mean() == pytest.approx(expected, abs=3 * np.sqrt(48.64 / found.size))


def test_equal_tokens_are_taken_as_often_as_different_ones():
  same = np.asarray(loads(jnp.zeros((1, LENGTH, EXPERTS)), spread_chance(jnp.arange(LENGTH), EXPERTS)))
  assert same.mean() == pytest.approx(SHARE * LENGTH, rel=0.05)


def test_the_rule_is_the_formula():
  earlier = Earlier(jnp.array([[2, 0]]), jnp.array([[1, 0]]), jnp.array([5]))
  chance, above = jnp.array([[0.2, 0.9]]), jnp.array([[0.25, 1.0]])
  # 2 + .2 * 2 < rho * 6 for rho > .4; 0 + .9 * 1 < rho * 6 for rho > .15.
  np.testing.assert_array_equal(among_the_best(earlier, 0.39, chance), [[False, True]])
  np.testing.assert_array_equal(among_the_best(earlier, 0.41, chance), [[True, True]])
  # 2.4 + 4 * .25 < rho * 10 for rho > .34; .9 + 4 < rho * 10 for rho > .49.
  np.testing.assert_array_equal(among_the_best(earlier, 0.33, chance, above, 4.0), [[False, False]])
  np.testing.assert_array_equal(among_the_best(earlier, 0.35, chance, above, 4.0), [[True, False]])
  np.testing.assert_array_equal(among_the_best(earlier, 0.50, chance, above, 4.0), [[True, True]])


def test_many_pseudo_observations_are_a_threshold():
  share_above = jax.random.uniform(jax.random.key(0), (32, 4))
  earlier = rank_among_earlier(-share_above, jnp.ones(32, bool), jnp.arange(32))
  chosen = among_the_best(earlier, SHARE, spread_chance(jnp.arange(32), 4), share_above, 1e6)
  np.testing.assert_array_equal(chosen, share_above < SHARE)


def test_chance_is_spread_evenly_over_positions_for_every_expert():
  chance = np.asarray(spread_chance(jnp.arange(1000), 16))
  assert chance.min() >= 0 and chance.max() < 1
  counts = np.stack([np.histogram(column, bins=10, range=(0, 1))[0] for column in chance.T])
  np.testing.assert_allclose(counts, 100, atol=4)
  assert len(np.unique(chance)) > 15_900
  np.testing.assert_array_equal(spread_chance(jnp.array([7]), 16)[0], chance[7])


def test_all_experts_take_everything_when_the_share_is_one():
  routing = routing_of(make("prefix_rank", capacity_factor=4.0), random_tokens(2, 16))
  assert not np.isnan(of_sequences(routing, 2, 16)).any()


def test_without_slack_the_first_tokens_get_the_slots_of_the_mean():
  router = make("prefix_rank", slack=0.0)
  routing = routing_of(router, random_tokens(3, 16))
  assert routing.token.shape == (3, 4, 8)
  everything = of_sequences(routing_of(make("prefix_rank", slack=None), random_tokens(3, 16)), 3, 16)
  early = ~np.isnan(everything) & (np.cumsum(~np.isnan(everything), axis=1) <= 8)
  np.testing.assert_array_equal(~np.isnan(of_sequences(routing, 3, 16)), early)


def run(router, tokens, *, positions=None, mask=None, training=False):
  """Weights `[B, T, E]`; in training the router's state moves."""
  inputs = inputs_of(tokens, router.config.groups(*tokens.shape[:2]), mask)
  graph, state = nnx.split(router)
  routing, state = compiled(graph, state, dataclasses.replace(inputs, positions=positions), training=training)
  nnx.update(router, state)
  return of_sequences(routing, *tokens.shape[:2])


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def compiled(graph, state, inputs, *, training):
  router = nnx.merge(graph, state)
  (output,) = learn(router, inputs) if training else [router(inputs, training=False)]
  return output.routing, nnx.state(router)


def test_packed_sequences_are_ranked_as_if_alone():
  router, tokens = make("prefix_rank", slack=None), random_tokens(2, 12)
  row = jnp.concatenate([tokens[:1, :7], tokens[1:, :4], tokens[:1, :1]], axis=1)  # 7 + 4 tokens, 1 of padding
  positions = jnp.array([[*range(7), *range(4), 0]])
  together = run(router, row, positions=positions, mask=jnp.arange(12)[None] < 11)
  alone = of_sequences(routing_of(router, tokens), 2, 12)
  np.testing.assert_allclose(together[0, :7], alone[0, :7], rtol=1e-5)
  np.testing.assert_allclose(together[0, 7:11], alone[1, :4], rtol=1e-5)
  assert np.isnan(together[0, 11]).all()


def test_without_positions_a_row_is_one_sequence_in_decoding_too():
  router, tokens = make("prefix_rank", pseudo_observations=2.0, slack=None), random_tokens(2, 10)
  run(router, tokens, training=True)  # fills the histogram
  expected = run(router, tokens)
  np.testing.assert_array_equal(of_sequences(routing_of(router, tokens), 2, 10), expected)
  step = jax.jit(lambda token, state: router.decode(RouterInput(token[None], jnp.ones((1, 2), bool)), state))
  state = router.init_decode_state(2, 10)
  for t in range(10):
    output, state = step(tokens[:, t], state)
    np.testing.assert_allclose(token_weights(output.routing, 2, 4)[0], expected[:, t], rtol=1e-5)


def test_pseudo_observations_come_from_the_batches_before_and_stay_in_evaluation():
  router, plain = make("prefix_rank", pseudo_observations=20.0, slack=None), make("prefix_rank", slack=None)
  tokens, unusual = random_tokens(2, 10), 3 * random_tokens(2, 10, seed=5)
  unhelped = run(plain, unusual)
  np.testing.assert_array_equal(run(router, unusual), unhelped)  # nothing is known yet
  run(router, tokens, training=True)
  held = np.asarray(router.past[...])
  assert (np.isnan(run(router, unusual)) != np.isnan(unhelped)).any()
  np.testing.assert_array_equal(router.past[...], held)
  run(router, unusual, training=True)
  np.testing.assert_allclose(held.sum(-1), 1 - 0.99, rtol=1e-4)
  np.testing.assert_allclose(router.past[...].sum(-1), 1 - 0.99**2, rtol=1e-4)


def test_weights_are_the_scores_or_sum_to_one():
  tokens = random_tokens(2, 16)
  plain, summed = (
    of_sequences(routing_of(make("prefix_rank", slack=None, renormalize=flag), tokens), 2, 16) for flag in (False, True)
  )
  total = np.nansum(plain, -1, keepdims=True)
  np.testing.assert_allclose(summed, plain / np.where(total > 0, total, 1), rtol=1e-5)
  np.testing.assert_array_equal(normalized_over_chosen(jnp.ones((1, 2)), jnp.zeros((1, 2), bool)), [[0, 0]])


def test_the_gradient_is_that_of_the_chosen_scores():
  router, tokens = make("prefix_rank", renormalize=True), random_tokens(2, 16)
  gain = jax.random.normal(jax.random.key(0), (2, 4, 17))

  def value(kernel):
    routing = routing_of(with_kernel(router, kernel), tokens, training=True)
    return (routing.weight * jnp.take_along_axis(gain, routing.token, axis=-1)).sum()

  kernel = router.kernel[...]
  direction, step = jax.random.normal(jax.random.key(1), kernel.shape), 1e-3
  slope = (value(kernel + step * direction) - value(kernel - step * direction)) / (2 * step)
  assert float((jax.grad(value)(kernel) * direction).sum()) == pytest.approx(float(slope), rel=0.01, abs=2e-3)


def test_it_is_the_causal_twin_of_expert_choice_with_as_many_experts_per_token():
  leaky, tokens = make("expert_choice", capacity_factor=1.5, renormalize=True), random_tokens(8, 64)
  config = leaky.config.causal_twin()
  twin = make(config.name, **dataclasses.asdict(config))
  twin.kernel[...] = leaky.kernel[...]
  assert config.is_causal(training=False) and twin.config.renormalize
  routing = routing_of(twin, tokens)
  assert isinstance(routing, RaggedRouting)  # nothing is dropped
  assert float(routing.group_sizes.sum()) / 512 == pytest.approx(1.5, rel=0.1)


def test_under_a_cap_experts_take_a_larger_share_so_that_tokens_have_as_many_experts():
  assert share_under_cap(2.0, 16, 16) == pytest.approx(2 / 16)
  assert share_under_cap(0.75, 2, 1) == pytest.approx(0.5)  # 1 - (1 - rho)^2 = 0.75
  assert share_under_cap(2.0, 8, 2) == pytest.approx(1.0)
  assert share_under_cap(2.0, 2, 5) == pytest.approx(1.0)
  assert 2 / 4096 < share_under_cap(2.0, 4096, 3) < 3 / 4096


def test_a_token_keeps_the_experts_that_it_scores_highest_with():
  scores = jnp.array([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
  chosen = jnp.array([[True, False, True, True], [False, False, False, True]])
  np.testing.assert_array_equal(best_of_chosen(chosen, scores, 2), [[1, 0, 1, 0], [0, 0, 0, 1]])


def test_with_a_cap_of_the_capacity_factor_it_is_token_choice():
  tokens = random_tokens(2, 32)
  router, choice = make("prefix_rank", cap=2, slack=None), make("token_choice", capacity_factor=None)
  choice.kernel[...] = router.kernel[...]
  taken = [~np.isnan(of_sequences(routing_of(each, tokens), 2, 32)) for each in (router, choice)]
  np.testing.assert_array_equal(*taken)


def test_options_that_cannot_be_are_refused():
  choice = RouterConfig.choices["prefix_rank"]
  with pytest.raises(ConfigError, match="cap = 1: expected at least the capacity factor 2"):
    choice(cap=1)
  with pytest.raises(ConfigError, match=r"capacity_factor = 9\.0: expected at most the 8 experts"):
    choice(capacity_factor=9.0).check(Site(8, 8), 2, 16)
  for field, value in (("slack", -1.0), ("pseudo_observations", -1.0), ("decay", 1.0)):
    with pytest.raises(ConfigError, match=f"{field} = {value}"):
      choice(**{field: value})
