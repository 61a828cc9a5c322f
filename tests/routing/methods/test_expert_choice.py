"""Expert choice against the invariants that its equations imply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.routing import RouterConfig, Site, SlotRouting
from moe.routing.methods.expert_choice import expert_choice, renormalized
from tests.routing.naive import make, random_tokens, route, routing_of, token_weights


def scores_of(n: int, experts: int, seed: int = 0):
  return jax.nn.softmax(jax.random.normal(jax.random.key(seed), (n, experts)))


def weights_of(routing: SlotRouting, n: int):
  """`[n, E]` of one group, 0 where an expert does not see a token."""
  return np.nan_to_num(token_weights(jax.tree.map(lambda leaf: leaf[None], routing), n, routing.token.shape[0])[0])


def test_the_closed_form_example():
  scores = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
  routing = expert_choice(scores, jnp.ones(4, bool), 2)
  np.testing.assert_array_equal(routing.token, [[0, 1], [3, 2]])
  np.testing.assert_array_equal(routing.weight, np.float32([[0.9, 0.8], [0.7, 0.4]]))
  output = weights_of(routing, 4) @ [10, 100]
  np.testing.assert_allclose(output, [9, 8, 40, 70], rtol=1e-6)


def test_each_expert_receives_exactly_k_distinct_tokens():
  routing = expert_choice(scores_of(40, 6), jnp.ones(40, bool), 9)
  for tokens in np.asarray(routing.token):
    assert len(set(tokens)) == 9
    assert tokens.max() < 40


def test_experts_per_token_vary_but_their_mean_is_the_capacity_factor_really_used():
  router = make("expert_choice", capacity_factor=1.7)
  tokens = random_tokens(4, 12)
  output = route(router, tokens)
  counts = (~np.isnan(token_weights(output.routing, 48, 4))).sum(-1)
  assert counts.sum() == 4 * 20  # k = 48 * 1.7 / 4 = 20.4
  assert counts.mean() == pytest.approx(float(output.metrics["capacity_factor"]))
  assert counts.max() > counts.min()


def test_an_expert_prefers_the_tokens_that_score_highest_with_it():
  scores = scores_of(40, 6)
  routing = expert_choice(scores, jnp.ones(40, bool), 9)
  for expert in range(6):
    np.testing.assert_array_equal(routing.token[expert], np.argsort(-np.asarray(scores[:, expert]))[:9])
    np.testing.assert_array_equal(routing.weight[expert], np.sort(np.asarray(scores[:, expert]))[::-1][:9])


def test_permuted_tokens_are_routed_the_same():
  scores, order = scores_of(40, 6), np.random.default_rng(0).permutation(40)
  weights = weights_of(expert_choice(scores, jnp.ones(40, bool), 9), 40)
  permuted = weights_of(expert_choice(scores[order], jnp.ones(40, bool), 9), 40)
  np.testing.assert_array_equal(permuted, weights[order])


def test_permuted_experts_choose_the_same_tokens():
  scores, order = scores_of(40, 6), np.random.default_rng(0).permutation(6)
  weights = weights_of(expert_choice(scores, jnp.ones(40, bool), 9), 40)
  permuted = weights_of(expert_choice(scores[:, order], jnp.ones(40, bool), 9), 40)
  np.testing.assert_array_equal(permuted, weights[:, order])


def test_when_every_expert_takes_every_token_it_is_the_dense_mixture():
  scores = scores_of(12, 4)
  np.testing.assert_array_equal(weights_of(expert_choice(scores, jnp.ones(12, bool), 12), 12), scores)


def test_one_expert_that_takes_all_has_weight_one():
  routing = routing_of(make("expert_choice", num_experts=1, capacity_factor=1.0), random_tokens(1, 8))
  np.testing.assert_array_equal(token_weights(routing, 8, 1), np.ones((1, 8, 1)))


def test_padding_is_never_chosen_and_its_scores_change_nothing():
  scores, mask = scores_of(12, 4), jnp.arange(12) % 3 != 0
  routing = expert_choice(scores, mask, 6)
  assert set(np.unique(routing.token)) <= {1, 2, 4, 5, 7, 8, 10, 11}
  other = expert_choice(jnp.where(mask[:, None], scores, 1.0), mask, 6)
  np.testing.assert_array_equal(routing.token, other.token)
  np.testing.assert_array_equal(routing.weight, other.weight)


def test_slots_that_only_padding_is_left_for_stay_empty():
  mask = jnp.arange(12) < 5
  routing = expert_choice(scores_of(12, 4), mask, 7)
  assert (np.sort(routing.token, axis=1) == [0, 1, 2, 3, 4, 12, 12]).all()
  np.testing.assert_array_equal(np.asarray(routing.weight)[routing.token == 12], 0)


def test_a_budget_below_the_slots_fills_the_first_of_them():
  scores, mask = scores_of(12, 4), jnp.arange(12) != 3
  plain = expert_choice(scores, mask, 5)
  jax.tree.map(np.testing.assert_array_equal, expert_choice(scores, mask, 5, jnp.int32(5)), plain)
  some = expert_choice(scores, mask, 5, jnp.int32(2))
  np.testing.assert_array_equal(some.token[:, :2], plain.token[:, :2])
  np.testing.assert_array_equal(some.token[:, 2:], np.full((4, 3), 12))
  np.testing.assert_array_equal(some.weight[:, 2:], np.zeros((4, 3)))


def test_a_real_token_whose_score_underflows_still_comes_before_padding():
  scores = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
  routing = expert_choice(scores, jnp.array([True, True, False, False]), 2)
  np.testing.assert_array_equal(routing.token, [[0, 1], [0, 1]])


def test_the_weights_are_not_renormalised_unless_asked():
  router, tokens = make("expert_choice"), random_tokens(2, 16)
  plain = np.nansum(token_weights(routing_of(router, tokens), 32, 4), -1)
  summed = np.nansum(token_weights(routing_of(make("expert_choice", renormalize=True), tokens), 32, 4), -1)
  assert (plain < 0.999).any()
  chosen = plain > 0
  np.testing.assert_allclose(summed[chosen], 1.0, rtol=1e-6)
  np.testing.assert_array_equal(summed[~chosen], 0.0)


def test_renormalising_keeps_the_proportions_and_the_empty_slots():
  routing = SlotRouting(jnp.array([[0, 1], [0, 3]]), jnp.array([[0.3, 0.2], [0.1, 0.0]]))
  np.testing.assert_allclose(renormalized(routing, 3).weight, [[0.75, 1.0], [0.25, 0.0]], rtol=1e-6)


def test_groups_are_routed_apart():
  router = make("expert_choice", group_size=8)
  tokens = random_tokens(2, 16)
  together = routing_of(router, tokens)
  alone = routing_of(router, tokens[1:])
  np.testing.assert_array_equal(together.token[2:], alone.token)
  np.testing.assert_allclose(together.weight[2:], alone.weight, rtol=1e-6)


def test_evaluation_may_have_a_capacity_of_its_own():
  router = make("expert_choice", capacity_factor=1.0, eval_capacity_factor=2.0)
  assert routing_of(router, random_tokens(1, 16), training=True).token.shape == (1, 4, 4)
  assert routing_of(router, random_tokens(1, 16), training=False).token.shape == (1, 4, 8)


def test_no_auxiliary_loss_unless_the_z_loss_is_asked_for():
  tokens = random_tokens(1, 16)
  assert float(route(make("expert_choice"), tokens, training=True).auxiliary_loss) == 0
  output = route(make("expert_choice", z_loss=0.5), tokens, training=True)
  assert float(output.auxiliary_loss) == pytest.approx(0.5 * float(output.losses["z"]))


def test_a_capacity_that_does_not_fit_is_refused_before_anything_is_computed():
  def check(**options):
    RouterConfig.choices["expert_choice"](capacity_factor=2.0, **options).check(Site(8, 8), batch=2, length=8)

  with pytest.raises(ConfigError, match=r"^eval_capacity_factor = 9\.0: expected at most the 8 experts there are"):
    check(eval_capacity_factor=9.0)
  with pytest.raises(ConfigError, match=r"^eval_capacity_factor = 0\.2: expected from 0\.5 to 8: .* 0 of a group's 16"):
    check(eval_capacity_factor=0.2)


def test_a_group_that_does_not_divide_the_batch_is_refused():
  choice = RouterConfig.choices["expert_choice"]
  with pytest.raises(ConfigError, match=r"group_size = 24: expected a divisor of 2 x 16 = 32 tokens"):
    choice(group_size=24).groups(batch=2, length=16)


def test_scores_may_sum_to_one_over_the_real_tokens_of_an_expert_instead():
  mask = jnp.arange(16)[None] < 11
  router, tokens = make("expert_choice", softmax="tokens", capacity_factor=4.0), random_tokens(1, 16)
  weights = np.nan_to_num(token_weights(routing_of(router, tokens, mask=mask), 16, 4))[0]
  np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)  # every expert takes every real token
  np.testing.assert_array_equal(weights[11:], 0)
  assert router.config.causal_twin() is None


def test_over_tokens_only_padding_has_weights_and_slopes_of_zero_and_a_nan_shows():
  router, tokens = make("expert_choice", softmax="tokens", group_size=8), random_tokens(3, 8)
  mask = jnp.ones((3, 8), bool).at[1].set(False)
  graph, params = nnx.split(router)
  total = lambda params, tokens: route(nnx.merge(graph, params), tokens, mask=mask).routing.weight.sum()  # noqa: E731
  weight = routing_of(router, tokens, mask=mask).weight
  slopes = jax.grad(total, argnums=1)(params, tokens)
  np.testing.assert_array_equal(weight[1], 0)
  np.testing.assert_array_equal(slopes[1], 0)
  assert (weight[0] > 0).all() and jnp.isfinite(slopes).all() and jnp.abs(slopes[0]).max() > 0
  broken = routing_of(router, tokens.at[2, 3, 0].set(jnp.nan), mask=mask).weight
  np.testing.assert_array_equal(jnp.isnan(broken).any((1, 2)), [False, False, True])


@pytest.mark.parametrize("name", ["expert_choice", "position_grouped"])
def test_training_noise_has_a_standard_deviation_of_one_over_the_experts(name):
  tokens, key = random_tokens(8, 64), jax.random.key(0)
  noisy, plain = (make(name, capacity_factor=4.0, noise=noise) for noise in (1.0, 0.0))
  routings = [routing_of(router, tokens, training=True, key=key) for router in (noisy, plain)]
  # All tokens go to all experts, so all probabilities are seen; their logarithms differ as the logits do.
  logits = [np.log(token_weights(routing, routing.token.shape[2], 4)) for routing in routings]
  assert np.diff(logits[0] - logits[1], axis=-1).std() == pytest.approx(2**0.5 / 4, rel=0.05)
  jax.tree.map(np.testing.assert_array_equal, routing_of(noisy, tokens), routing_of(plain, tokens))
  with pytest.raises(ValueError, match=r"RouterInput\.key = None: expected a key"):
    routing_of(noisy, tokens, training=True)


def test_it_cannot_decode_step_by_step():
  with pytest.raises(NotImplementedError, match="later tokens"):
    make("expert_choice").decode(None, {})
