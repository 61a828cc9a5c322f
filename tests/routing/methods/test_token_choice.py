"""Token choice: the published methods on gates small enough to follow by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from moe.config import ConfigError, build
from moe.routing import Groups, RaggedRouting, RouterConfig, Site
from moe.routing.methods.token_choice import second_by_chance
from moe.routing.top_k import top_choices
from tests.routing.differences import assert_gradient_is_the_difference_quotient
from tests.routing.naive import make, of_sequences, random_tokens, route, routing_of, token_weights

EXPERTS = 4
PROBS = np.float32([[0.5, 0.3, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.5, 0.1, 0.3, 0.1], [0.1, 0.6, 0.2, 0.1]])
CONTESTED = np.float32([[0.1, 0.6, 0.2, 0.1], [0.3, 0.5, 0.1, 0.1], [0.6, 0.3, 0.05, 0.05], [0.1, 0.1, 0.2, 0.6]])


def route_probs(name, probs, *, training=False, mask=None, key=None, **options):
  """Routes one sequence whose router probabilities are given: their logarithms, through the identity."""
  router = make(name, num_experts=EXPERTS, d_model=EXPERTS, **options)
  router.kernel[...] = jnp.eye(EXPERTS)
  mask = None if mask is None else jnp.array(mask)[None]
  return route(router, jnp.log(jnp.array(probs))[None], training=training, mask=mask, key=key)


def assert_tables(routing, token, weight):
  np.testing.assert_array_equal(routing.token[0], token)
  np.testing.assert_allclose(routing.weight[0], weight, rtol=1e-5)


@pytest.mark.parametrize("name", ["causal_gshard", "glam"])
def test_top_two_with_renormalised_gates(name):
  # C = 2 * 4 / 4 = 2. Token 2 finds expert 0 full, token 3 finds expert 1 full; their second gates stay as they were.
  output = route_probs(name, PROBS)
  token = [[0, 1], [0, 1], [2, 3], [4, 4]]
  assert_tables(output.routing, token, [[0.625, 0.75], [0.375, 0.25], [0.375, 0.25], [0, 0]])
  assert float(output.metrics["dropped"]) == pytest.approx(2 / 8)


def test_gates_renormalised_over_kept_choices_make_up_for_a_dropped_one():
  # As above, but the first choices of tokens 2 and 3 are dropped, and their second gates become 1.
  output = route_probs("glam", PROBS, renormalize_over="kept")
  assert_tables(output.routing, [[0, 1], [0, 1], [2, 3], [4, 4]], [[0.625, 0.75], [0.375, 0.25], [1, 1], [0, 0]])
  # DeepSpeed's top-2 drops a second choice that is not drawn, and the first gate becomes 1.
  drawn = route_probs(
    "gshard", PROBS, training=True, capacity_factor=None, renormalize_over="kept", key=jax.random.key(3)
  )
  weights = token_weights(drawn.routing, 4, EXPERTS)[0]
  np.testing.assert_allclose(np.nansum(weights, -1), 1, rtol=1e-6)
  assert (np.isnan(weights).sum(-1) == 3).any()


@pytest.mark.parametrize(
  ("options", "tokens", "slots"),
  [
    ({"slots": 64}, 100, 64),  # Hugging Face's expert_capacity, whatever the length
    ({"slots": 64}, 20, 20),
    ({"slots": 1, "capacity_factor": 3.0, "eval_capacity_factor": 4.0}, 100, 1),
    ({"least_slots": 4}, 4, 4),
    ({"least_slots": 4}, 20, 10),
    ({"slots_multiple": 4}, 18, 12),  # 9 by the factor of 2
  ],
)
def test_slots_can_be_fixed_have_a_minimum_and_be_a_multiple(options, tokens, slots):
  router = make("token_choice", **options)
  for training in (True, False):
    assert routing_of(router, random_tokens(1, tokens), training=training).token.shape == (1, EXPERTS, slots)
  assert router.init_decode_state(1, tokens)["free"].tolist() == [[slots] * EXPERTS]


def test_a_router_s_bias_is_added_to_its_logits_and_learns():
  router, tokens = make("dropless", router_bias=True), random_tokens(1, 8)
  router.kernel_bias[...] = bias = jnp.array([0.0, 0.5, -0.5, 3.0])
  np.testing.assert_allclose(
    router.logits(tokens, None).clean, tokens @ router.kernel[...] + bias, rtol=1e-4, atol=1e-5
  )
  assert_gradient_is_the_difference_quotient(router, random_tokens(2, 8))
  assert make("dropless").kernel_bias is None


def test_switch_has_one_raw_gate_and_drops_what_comes_too_late():
  # C = 1.25 * 4 / 4 = 1 in training. Jitter is left out to keep the gates literal.
  output = route_probs("switch", PROBS, training=True, jitter=0.0)
  assert_tables(output.routing, [[0], [3], [4], [4]], [[0.5], [0.6], [0], [0]])
  # C = 2 * 4 / 4 = 2 in evaluation.
  evaluated = route_probs("switch", PROBS)
  assert_tables(evaluated.routing, [[0, 1], [3, 4], [4, 4], [4, 4]], [[0.5, 0.6], [0.6, 0], [0, 0], [0, 0]])


def test_an_earlier_second_choice_is_served_before_a_later_first_choice():
  # C = 1. Expert 0 goes to token 1's second choice, though token 2 wants it first; GShard's queue gives it to 2.
  output = route_probs("token_choice", CONTESTED, capacity_factor=1.0)
  assert_tables(output.routing, [[1], [0], [0], [3]], [[0.3], [0.6], [0.2], [0.6]])


def test_by_choice_every_first_choice_is_served_before_any_second():
  # C = 1. The firsts are 1, 1, 0, 3: token 2 gets expert 0, which token 1 wanted second.
  output = route_probs("gshard", CONTESTED, capacity_factor=1.0)
  third = np.float32([0.6 / 0.8, 0.2 / 0.8])
  assert_tables(output.routing, [[2], [0], [0], [3]], [[0.6 / 0.9], [third[0]], [third[1]], [third[0]]])


def test_a_group_across_sequences_shares_its_slots():
  # Two sequences of two tokens, C = 1 for each expert of the group of four: the same decision as on one sequence.
  router = make("gshard", num_experts=EXPERTS, d_model=EXPERTS, capacity_factor=1.0)
  router.kernel[...] = jnp.eye(EXPERTS)
  one, two = (route(router, jnp.log(jnp.array(CONTESTED)).reshape(rows, -1, EXPERTS)).routing for rows in (1, 2))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_by_score_an_expert_serves_whoever_scores_highest_with_it_first_choice_or_not():
  # C = 1. Expert 0: 0.3 of token 1's second choice, 0.6 of token 2's first. Expert 1: 0.6, 0.5, and 0.3 of a second.
  output = route_probs("token_choice", CONTESTED, capacity_factor=1.0, order="score")
  assert_tables(output.routing, [[2], [0], [0], [3]], [[0.6], [0.6], [0.2], [0.6]])
  second = np.float32([[0.55, 0.45, 0, 0], [0.3, 0.2, 0.5, 0], [0.1, 0.1, 0.2, 0.6], [0.1, 0.1, 0.2, 0.6]]) + 1e-9
  # Expert 0 has nobody before token 0; expert 2's slot goes to the first choice 0.5; with C = 1 a second choice of 0.45
  # is served, as no one wants expert 1 more.
  served = route_probs("token_choice", second, capacity_factor=1.0, order="score").routing
  np.testing.assert_array_equal(served.token, [[[0], [0], [1], [2]]])
  # Two tokens want expert 1: the second choice of token 0 with 0.45 is ahead of the first choice of token 1 with 0.4.
  rival = np.float32([[0.5, 0.45, 0.05, 0], [0.2, 0.4, 0.35, 0.05], [0.1, 0.1, 0.2, 0.6], [0.1, 0.1, 0.2, 0.6]]) + 1e-9
  by_score, by_choice = (
    route_probs("token_choice", rival, capacity_factor=1.0, order=order).routing.token[0, 1]
    for order in ("score", "choice")
  )
  assert (by_score.tolist(), by_choice.tolist()) == ([0], [1])


def test_priorities_are_scores_before_renormalisation():
  # Renormalised over two experts, token 1's gate 0.4 / 0.5 would be ahead of token 0's 0.5 / 0.9.
  probs = np.float32([[0.5, 0.4, 0.05, 0.05], [0.4, 0.1, 0.25, 0.25], [0.1, 0.1, 0.2, 0.6], [0.1, 0.1, 0.2, 0.6]])
  for order in ("score", "batch_priority"):
    output = route_probs("token_choice", probs, capacity_factor=1.0, order=order, renormalize=True)
    assert output.routing.token[0, 0].tolist() == [0]


def test_random_order_favours_no_position_in_training_and_is_by_choice_in_evaluation():
  router = make("token_choice", capacity_factor=0.25, order="random", top_k=1, num_experts=EXPERTS, d_model=EXPERTS)
  router.kernel[...] = jnp.eye(EXPERTS)
  tokens = jnp.broadcast_to(10 * jax.nn.one_hot(0, EXPERTS), (1, 32, EXPERTS))
  # All 32 tokens want expert 0, which has 2 slots.
  served = jax.jit(jax.vmap(lambda key: route(router, tokens, training=True, key=key).routing.token[0, 0]))(
    jax.random.split(jax.random.key(0), 2000)
  )
  times = np.bincount(np.asarray(served).ravel(), minlength=32)
  assert len(times) == 32 and times.sum() == 4000
  np.testing.assert_allclose(times, 125, atol=5 * np.sqrt(125))
  np.testing.assert_array_equal(route(router, tokens).routing.token[0, 0], [0, 1])


@pytest.mark.parametrize(
  ("order", "group", "share", "late"),
  [("token", 256, 0.138, 0.399), ("choice", 256, 0.0079, 0.027), ("choice", 512, 0.00073, 0.0028)],
)
def test_share_of_first_choices_dropped_with_64_experts_and_a_capacity_factor_of_2(order, group, share, late):
  """Of all, and of the last quarter's. The queue ahead of a random choice is binomial, so both have a closed form."""
  experts, batch, slots = 64, 8192 // group, group * 2 // 64
  queued = np.arange(group) * (2 if order == "token" else 1)  # choices of all experts before a first one, by position
  full = binom.sf(slots - 1, queued, 1 / experts)
  assert full.mean() == pytest.approx(share, rel=0.01)
  assert full[-group // 4 :].mean() == pytest.approx(late, rel=0.01)
  router = make("glam", num_experts=experts, d_model=experts, order=order, group_size=group)
  router.kernel[...] = jnp.eye(experts)
  tokens = random_tokens(batch, group, experts)
  kept = ~np.isnan(token_weights(routing_of(router, tokens), group, experts))
  firsts = np.take_along_axis(kept, np.argmax(tokens, -1)[..., None], -1)
  assert 1 - firsts.mean() == pytest.approx(share, abs=5 * np.sqrt(share / firsts.size))


def test_batch_priority_gives_the_only_slot_to_the_largest_gate():
  output = route_probs("token_choice", PROBS, top_k=1, capacity_factor=1.0, order="batch_priority")
  assert_tables(output.routing, [[1], [3], [4], [4]], [[0.6], [0.6], [0], [0]])


def test_batch_priority_is_token_order_where_nothing_is_dropped():
  tokens = random_tokens(2, 16)
  orders = [make("token_choice", capacity_factor=4.0, order=order) for order in ("token", "batch_priority")]
  by_sequence, by_priority = (of_sequences(routing_of(router, tokens), 2, 16) for router in orders)
  np.testing.assert_allclose(by_sequence, by_priority, rtol=1e-6)


def test_batch_priority_serves_padding_last_of_all():
  output = route_probs(
    "token_choice", PROBS, mask=[True, False, True, True], top_k=1, capacity_factor=1.0, order="batch_priority"
  )
  assert_tables(output.routing, [[0], [3], [4], [4]], [[0.5], [0.6], [0], [0]])


@pytest.mark.parametrize("name", ["switch", "causal_gshard", "gshard", "glam", "token_choice"])
def test_padding_takes_no_capacity(name):
  tokens = random_tokens(1, 16)
  mask = jnp.arange(16)[None] % 2 == 1
  router = make(name, eval_capacity_factor=0.5)
  routing = routing_of(router, tokens, mask=mask)
  weights = token_weights(routing, 16, 4)[0]
  assert np.isnan(weights[::2]).all()
  # The same real tokens before 8 of padding: the same decisions.
  front = jnp.concatenate([tokens[:, 1::2], tokens[:, ::2]], axis=1)
  moved = token_weights(routing_of(router, front, mask=jnp.arange(16)[None] < 8), 16, 4)[0]
  np.testing.assert_allclose(weights[1::2], moved[:8], rtol=1e-6)


def test_dropless_keeps_every_choice_of_every_real_token():
  mask = jnp.arange(16)[None] < 13
  output = route(make("token_choice", capacity_factor=None), random_tokens(1, 16), mask=mask)
  assert isinstance(output.routing, RaggedRouting)
  assert int(output.routing.group_sizes.sum()) == 13 * 2
  counts = (~np.isnan(token_weights(output.routing, 16, 4))).sum(-1)[0]
  np.testing.assert_array_equal(counts, [2] * 13 + [0] * 3)
  assert float(output.metrics["dropped"]) == 0


def test_dropless_equals_a_capacity_that_drops_nothing():
  tokens = random_tokens(2, 16)
  ragged, slots = (
    of_sequences(routing_of(make("token_choice", capacity_factor=c), tokens), 2, 16) for c in (None, 4.0)
  )
  np.testing.assert_allclose(ragged, slots, rtol=1e-6)


def test_ties_go_to_the_expert_of_lower_index():
  choices, _ = top_choices(jnp.full((3, 4), 0.25), 2, renormalize=False)
  np.testing.assert_array_equal(choices, [[0, 1]] * 3)


@pytest.mark.parametrize(
  ("second", "threshold", "probability"),
  [
    *[(0.1, 0.5, 0.2), (0.25, 0.5, 0.5), (0.5, 0.5, 1.0), (0.7, 0.5, 1.0), (0.0, 0.5, 0.0)],  # GShard: twice the gate
    *[(0.05, 0.2, 0.25), (0.1, 0.2, 0.5), (0.2, 0.2, 1.0)],  # ST-MoE
  ],
)
def test_the_second_expert_is_kept_with_its_gate_over_the_threshold(second, threshold, probability):
  gates = jnp.broadcast_to(jnp.array([1 - second, second]), (10_000, 2))
  kept = np.asarray(second_by_chance(gates, threshold, jax.random.key(0)))
  assert kept[:, 0].all()
  assert kept[:, 1].mean() == pytest.approx(probability, abs=5 * np.sqrt(0.25 / 10_000))


def test_gshard_draws_the_second_expert_in_training_only():
  router, tokens = make("gshard", capacity_factor=4.0, group_size=32), random_tokens(8, 32)
  everyone = token_weights(routing_of(router, tokens), 32, 4)
  output = route(router, tokens, training=True, key=jax.random.key(0))
  drawn = token_weights(output.routing, 32, 4)
  counts = (~np.isnan(drawn)).sum(-1)
  assert set(np.unique(counts)) == {1, 2}
  assert ((~np.isnan(everyone)).sum(-1) == 2).all()
  kept = ~np.isnan(drawn)
  np.testing.assert_allclose(drawn[kept], everyone[kept], rtol=1e-6)
  assert float(output.metrics["dropped"]) == 0  # a second that was not drawn asked for no slot


def test_switch_jitters_its_input_by_the_published_hundredth_in_training_only():
  router, tokens = make("switch", capacity_factor=4.0, eval_capacity_factor=4.0), random_tokens(2, 64)
  still = np.nansum(token_weights(routing_of(router, tokens), 64, 4), -1)
  jittered = np.nansum(token_weights(routing_of(router, tokens, training=True, key=jax.random.key(0)), 64, 4), -1)
  again = np.nansum(token_weights(routing_of(router, tokens, training=True, key=jax.random.key(0)), 64, 4), -1)
  assert (still != jittered).mean() > 0.9
  np.testing.assert_array_equal(jittered, again)
  # |change of a logit| <= 0.01 * sum |x_i W_ie|, and a probability moves by at most half the spread of its logits.
  reach = 0.01 * np.abs(tokens)[..., None] * np.abs(router.kernel[...])
  assert (np.abs(still - jittered) <= 0.5 * reach.sum(-2).max(-1)).all()


def test_noise_has_the_standard_deviation_asked_for_over_the_number_of_experts():
  router = make("token_choice", noise=1.0, capacity_factor=None, top_k=1)
  router.kernel[...] = jnp.zeros_like(router.kernel[...])
  output = route(router, random_tokens(4, 256), training=True, key=jax.random.key(0))
  # With equal logits the noise alone chooses: the experts are taken alike and the gates are a softmax of N(0, 1/16).
  assert float(output.metrics["load_cv"]) < 0.15
  expected = jax.nn.softmax(jax.random.normal(jax.random.key(1), (100_000, 4)) / 4).max(-1).mean()
  assert float(output.routing.weight.mean()) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize("name", ["switch", "gshard"])
def test_a_random_router_without_a_key_is_an_error_in_training(name):
  with pytest.raises(ValueError, match=r"RouterInput\.key = None: expected a key"):
    route(make(name), random_tokens(1, 8), training=True)


def test_the_auxiliary_loss_is_the_weighted_sum_of_the_losses():
  weights = {"balance": 0.01, "importance": 0.02, "load": 0.03, "z": 0.04}
  router = make("token_choice", noise=1.0, **{f"{name}_loss": weight for name, weight in weights.items()})
  output = route(router, random_tokens(2, 16), training=True, key=jax.random.key(0))
  assert output.losses.keys() == weights.keys()
  expected = sum(weights[name] * float(loss) for name, loss in output.losses.items())
  assert float(output.auxiliary_loss) == pytest.approx(expected, rel=1e-5)


def test_sigmoid_gates_are_those_of_each_chosen_expert_by_itself_and_can_be_renormalised():
  tokens = random_tokens(1, 16)
  plain, shared = (make("dropless", scores="sigmoid", renormalize=flag) for flag in (False, True))
  weights = of_sequences(routing_of(plain, tokens), 1, 16)[0]
  scores = np.asarray(jax.nn.sigmoid(tokens[0] @ plain.kernel[...]))
  chosen = scores >= np.sort(scores, axis=-1)[:, 2:3]
  np.testing.assert_array_equal(~np.isnan(weights), chosen)
  np.testing.assert_allclose(np.nan_to_num(weights), scores * chosen, rtol=1e-5)
  expected = scores * chosen / (scores * chosen).sum(-1, keepdims=True)
  np.testing.assert_allclose(np.nan_to_num(of_sequences(routing_of(shared, tokens), 1, 16)[0]), expected, rtol=1e-5)


def test_sigmoid_scores_enter_the_balance_loss_as_shares_of_their_sum():
  router, tokens = make("dropless", scores="sigmoid"), random_tokens(2, 16)
  output = route(router, tokens, training=True)
  scores = np.asarray(jax.nn.sigmoid(tokens.reshape(32, -1) @ router.kernel[...]))
  shares = (scores / scores.sum(-1, keepdims=True)).mean(0)
  fraction = np.asarray(output.routing.group_sizes[0]) / 64
  assert float(output.losses["balance"]) == pytest.approx(EXPERTS * float(fraction @ shares), rel=1e-5)


def test_renormalised_gates_survive_scores_that_all_underflow():
  # And however small they are, they are those of the scores.
  _, gates = top_choices(jnp.array([[3e-29, 1e-29, 0.0]]), 2, renormalize=True)
  np.testing.assert_allclose(gates, [[0.75, 0.25]], rtol=1e-6)
  _, gates = top_choices(jax.nn.sigmoid(jnp.full((1, 4), -200.0)), 2, renormalize=True)
  np.testing.assert_array_equal(gates, 0)


def test_the_causal_twin_of_batch_priority_serves_by_position():
  config = build(RouterConfig, {"name": "batch_priority", "capacity_factor": 0.75, "group_size": 8})
  twin = config.causal_twin()
  assert twin.is_causal(training=True) and not config.is_causal(training=False)
  assert (twin.order, twin.group_size, twin.capacity_factor) == ("token", 0, 0.75)
  tokens = random_tokens(2, 16)
  priority, by_position = (make("batch_priority", capacity_factor=0.75, order=o) for o in ("batch_priority", "token"))
  kept = ~np.isnan(of_sequences(routing_of(by_position, tokens), 2, 16))
  # The first tokens of each sequence are served; priority leaves some of them out.
  assert kept[:, 0].sum() == 4
  assert (kept != ~np.isnan(of_sequences(routing_of(priority, tokens), 2, 16))).any()


def test_the_causal_twin_of_gshard_is_causal_gshard_with_its_options():
  config = build(RouterConfig, {"name": "gshard", "capacity_factor": 1.5, "group_size": 8})
  twin = config.causal_twin()
  assert (twin.name, twin.order, twin.group_size, twin.capacity_factor) == ("causal_gshard", "token", 0, 1.5)
  assert twin.is_causal(training=True) and twin.is_batch_independent(16, training=True)
  # Chunks of a sequence keep sequences apart, but within one a later token pushes out an earlier one.
  assert not config.is_causal(training=True) and config.is_batch_independent(16, training=True)


PUBLISHED = {
  "switch": {"top_k": 1, "capacity_factor": 1.25, "eval_capacity_factor": 2.0, "jitter": 0.01, "balance_loss": 0.01},
  "gshard": {
    "top_k": 2,
    "order": "choice",
    "capacity_factor": 2.0,
    "renormalize": True,
    "second_expert": "random",
    "second_threshold": 0.5,
    "balance_loss": 0.01,
    "balance_over": "first",
    "balance_scope": "group",
  },
  "glam": {"top_k": 2, "capacity_factor": 2.0, "second_expert": "all", "balance_loss": 0.01},
  "dropless": {"top_k": 2, "capacity_factor": None, "balance_loss": 0.01},
  "batch_priority": {
    "top_k": 2,
    "capacity_factor": 1.05 * 2,
    "order": "batch_priority",
    "noise": 1.0,
    "importance_loss": 0.005,
    "load_loss": 0.005,
    "balance_loss": 0.0,
  },
  "noisy_top_k": {"capacity_factor": None, "renormalize": True, "importance_loss": 0.1, "load_loss": 0.1},
  "loss_free": {"capacity_factor": None, "scores": "sigmoid", "bias_rate": 0.001, "balance_loss": 0.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_methods_come_with_their_published_options(name):
  options = RouterConfig.choices[name]()
  assert {field: getattr(options, field) for field in PUBLISHED[name]} == PUBLISHED[name]
  assert options.queues_by_sequence == (
    options.capacity_factor is not None and name not in ("gshard", "batch_priority")
  )


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"top_k": 0}, "top_k = 0: expected at least 1"),
    ({"capacity_factor": 0.0}, "capacity_factor = 0.0: expected more than 0"),
    ({"eval_capacity_factor": -1.0}, "eval_capacity_factor = -1.0: expected more than 0"),
    ({"capacity_factor": None, "eval_capacity_factor": 2.0}, "eval_capacity_factor = 2.0: expected None"),
    ({"order": "batch_priority", "group_size": -1}, "group_size = -1"),
    ({"top_k": 1, "renormalize": True}, "renormalize = True: expected False for top_k = 1"),
    ({"top_k": 3, "second_expert": "random"}, "second_expert = 'random': expected 'all' unless top_k = 2"),
    ({"second_threshold": 0.0}, "second_threshold = 0.0: expected more than 0"),
    ({"renormalize_over": "kept"}, "renormalize_over = 'kept': expected 'all' unless renormalize = True"),
    ({"slots": 0}, "slots = 0: expected at least 1"),
    ({"slots": 8, "capacity_factor": None}, "slots = 8: expected None: capacity_factor = None means dropless"),
    ({"slots_multiple": 4, "capacity_factor": None}, "slots_multiple = 4: expected 1: capacity_factor = None"),
    ({"jitter": 1.0}, "jitter = 1.0: expected at least 0 and less than 1"),
    ({"z_loss": -0.1}, "z_loss = -0.1: expected at least 0"),
    ({"load_loss": 0.1}, "load_loss = 0.1: expected 0 unless noise > 0"),
    ({"scores": "tanh"}, "scores = 'tanh': expected one of 'softmax', 'sigmoid'"),
    (
      {"order": "sequence"},
      "order = 'sequence': expected one of 'token', 'choice', 'batch_priority', 'score', 'random'",
    ),
    ({"capacity": 2.0}, "capacity = 2.0: unknown field"),
  ],
)
def test_options_that_make_no_sense_are_refused_by_name(values, message):
  with pytest.raises(ConfigError) as error:
    build(RouterConfig, {"name": "token_choice", **values}, "model.router")
  assert str(error.value).startswith(f"model.router.{message}")


def test_more_choices_than_experts_are_refused():
  choice = RouterConfig.choices["token_choice"]
  with pytest.raises(ConfigError, match=r"top_k = 5: expected at most the 4 experts"):
    choice(top_k=5).check(Site(8, 4), batch=1, length=16)
  with pytest.raises(ConfigError, match=r"load_loss = 0\.1: expected 0 unless top_k < 4 experts"):
    choice(top_k=4, noise=1.0, load_loss=0.1).check(Site(8, 4), batch=1, length=16)


def test_sequences_are_the_groups_of_token_order_unless_a_size_is_given():
  choice = RouterConfig.choices["token_choice"]
  assert choice().groups(batch=8, length=16) == Groups(16)
  assert choice(group_size=64).groups(batch=8, length=16) == Groups(64)
  assert choice(order="batch_priority").groups(batch=8, length=16) == Groups(128)
  assert choice(order="batch_priority", group_size=64).groups(batch=8, length=16) == Groups(64)
  assert choice(capacity_factor=None).groups(batch=8, length=16) == Groups(128)
