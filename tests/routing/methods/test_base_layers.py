"""BASE and S-BASE as routers: balance in training, greed in evaluation, shuffling that can be undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moe.config import ConfigError
from moe.routing import RaggedRouting, RouterConfig, Site, SlotRouting
from moe.routing.scores import router_logits
from moe.routing.solvers.balanced_assignment import balanced_assignment
from tests.routing.naive import make, of_sequences, random_tokens, route

BATCH, LENGTH, EXPERTS = 4, 16, 4
KEY = jax.random.key(0)


def weights_of(name, tokens, *, training, **options):
  """`[B, T, E]`, NaN where a token did not go, and the output itself."""
  output = route(make(name, **options), tokens, training=training, key=KEY)
  return of_sequences(output.routing, *tokens.shape[:2]), output


@pytest.mark.parametrize("options", [{}, {"group_size": 16}, {"shuffle": False}, {"group_size": 8, "shuffle": False}])
def test_in_training_every_expert_gets_equally_many_tokens_and_every_token_one_expert(options):
  weights, output = weights_of("base", random_tokens(BATCH, LENGTH), training=True, **options)
  assert isinstance(output.routing, SlotRouting)
  np.testing.assert_array_equal((~np.isnan(weights)).sum(-1), 1)
  np.testing.assert_array_equal((~np.isnan(weights)).sum((0, 1)), BATCH * LENGTH / EXPERTS)
  assert float(output.metrics["load_max"]) == pytest.approx(1)


def test_the_assignment_is_the_best_there_is_and_its_certificate_says_so():
  tokens = random_tokens(BATCH, LENGTH)
  weights, output = weights_of("base", tokens, training=True, shuffle=False)
  scores = np.asarray(router_logits(tokens.reshape(-1, tokens.shape[-1]), make("base").kernel[...]))
  copies = np.repeat(scores, len(scores) // EXPERTS, axis=1)
  best = copies[linear_sum_assignment(copies, maximize=True)].sum()
  found = scores[~np.isnan(weights.reshape(-1, EXPERTS))].sum()
  assert found == pytest.approx(best, rel=1e-5)
  assert 0 <= float(output.metrics["assignment_gap"]) < 1e-4


def test_the_gate_is_the_sigmoid_of_the_chosen_score_in_both_modes():
  tokens = random_tokens(BATCH, LENGTH)
  gates = jax.nn.sigmoid(router_logits(tokens, make("base").kernel[...]))
  for training in (True, False):
    weights, _ = weights_of("base", tokens, training=training)
    taken = ~np.isnan(weights)
    np.testing.assert_allclose(weights[taken], np.asarray(gates)[taken], rtol=1e-5)


def test_in_evaluation_every_token_takes_its_best_expert():
  tokens = random_tokens(BATCH, LENGTH)
  weights, output = weights_of("base", tokens, training=False)
  assert isinstance(output.routing, RaggedRouting)
  best = router_logits(tokens, make("base").kernel[...]).argmax(-1)
  np.testing.assert_array_equal(np.nan_to_num(weights).argmax(-1), best)
  assert "assignment_gap" not in output.metrics


def test_where_the_best_experts_are_balanced_training_and_evaluation_agree():
  one_hot = jnp.tile(jnp.eye(8)[:EXPERTS], (BATCH, LENGTH // EXPERTS, 1))
  router = make("base")
  router.kernel[...] = jnp.eye(8)[:, :EXPERTS]
  by_mode = [
    of_sequences(route(router, one_hot, training=training, key=KEY).routing, BATCH, LENGTH)
    for training in (True, False)
  ]
  np.testing.assert_array_equal(*by_mode)


def test_shuffling_changes_the_groups_but_not_whose_weights_are_whose():
  """One group of all tokens has one best assignment, in whatever order they are dealt."""
  tokens = random_tokens(BATCH, LENGTH)
  dealt, _ = weights_of("base", tokens, training=True)
  in_order, _ = weights_of("base", tokens, training=True, shuffle=False)
  np.testing.assert_array_equal(dealt, in_order)
  in_groups, _ = weights_of("base", tokens, training=True, group_size=16)
  cut, _ = weights_of("base", tokens, training=True, group_size=16, shuffle=False)
  assert (np.isnan(in_groups) != np.isnan(cut)).any()


def test_padding_is_not_assigned_and_takes_no_place():
  tokens, mask = random_tokens(BATCH, LENGTH), jnp.arange(LENGTH)[None] < jnp.array([[16], [9], [12], [3]])
  output = route(make("base"), tokens, training=True, key=KEY, mask=mask)
  weights = of_sequences(output.routing, BATCH, LENGTH)
  np.testing.assert_array_equal((~np.isnan(weights)).sum(-1), mask)
  np.testing.assert_array_equal((~np.isnan(weights)).sum((0, 1)), 10)  # 40 real tokens


def test_shuffling_without_a_key_and_groups_smaller_than_the_experts_are_refused():
  with pytest.raises(ValueError, match=r"RouterInput\.key = None: expected a key"):
    route(make("base"), random_tokens(BATCH, LENGTH), training=True)
  for name in ("base", "sinkhorn_base"):
    choice = RouterConfig.choices[name]
    with pytest.raises(ConfigError, match=r"group_size = 2: expected at least one token for each of the 4 experts"):
      choice(group_size=2).check(Site(8, EXPERTS), batch=BATCH, length=LENGTH)
    with pytest.raises(ConfigError, match=r"group_size = 24: expected a divisor of"):
      choice(group_size=24).check(Site(8, EXPERTS), batch=BATCH, length=LENGTH)


def test_sinkhorn_spreads_the_load_in_training_and_takes_the_largest_logit_in_evaluation():
  skewed = random_tokens(BATCH, 64).at[..., 0].add(2.0)
  trained, output = weights_of("sinkhorn_base", skewed, training=True)
  evaluated, greedy = weights_of("sinkhorn_base", skewed, training=False)
  assert float(output.metrics["load_max"]) < 1.25 < 1.5 < float(greedy.metrics["load_max"])
  logits = router_logits(skewed, make("sinkhorn_base").kernel[...])
  np.testing.assert_array_equal(np.nan_to_num(evaluated).argmax(-1), logits.argmax(-1))
  taken = ~np.isnan(trained)
  np.testing.assert_array_equal(taken.sum(-1), 1)
  np.testing.assert_allclose(trained[taken], np.asarray(jax.nn.sigmoid(logits))[taken], rtol=1e-5)


def test_in_evaluation_gates_that_are_all_1_hide_no_largest_logit():
  tokens = 1000 * random_tokens(BATCH, LENGTH)
  logits = router_logits(tokens, make("sinkhorn_base").kernel[...])
  assert (jax.nn.sigmoid(logits) == 1).sum(-1).max() > 1
  found, _ = weights_of("sinkhorn_base", tokens, training=False, capacity_factor=None)
  np.testing.assert_array_equal((~np.isnan(found)).argmax(-1), logits.argmax(-1))


def test_no_gradient_flows_through_an_assignment_but_through_the_gate_it_does():
  kernel, tokens = make("base").kernel[...], random_tokens(1, LENGTH)[0]
  mask = jnp.ones(LENGTH, bool)

  def gated(kernel):
    scores = router_logits(tokens, kernel)
    expert = balanced_assignment(jax.lax.stop_gradient(scores), mask).expert
    return jax.nn.sigmoid(jnp.take_along_axis(scores, expert[:, None], 1)).sum(), expert

  (_, expert), gradient = jax.value_and_grad(gated, has_aux=True)(kernel)
  gates = jax.nn.sigmoid(jnp.take_along_axis(router_logits(tokens, kernel), expert[:, None], 1))
  expected = tokens.T @ (jax.nn.one_hot(expert, EXPERTS) * gates * (1 - gates))
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
