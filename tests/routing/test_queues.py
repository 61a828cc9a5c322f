"""Queues and tables, by literal examples and against a loop that serves one choice after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import queues
from tests.routing.naive import make, random_tokens, routing_of, serve, token_weights

CHOICES = jnp.array([[0, 1], [1, 0], [0, 2]])
ALL = jnp.ones((3, 2), bool)


def random_choices(n: int, k: int, experts: int):
  rng = np.random.default_rng(n + k)
  choices = np.argsort(rng.normal(size=(n, experts)), axis=-1)[:, :k].astype(np.int32)
  gates = -np.sort(-rng.uniform(size=(n, k)).astype(np.float32), axis=-1)
  return choices, gates, rng.uniform(size=(n, k)) < 0.8


@functools.partial(jax.jit, static_argnames=("experts", "capacity", "order"))
def to_slots(choices, gates, wanted, experts: int, capacity: int, order: str = "token"):
  """One group with an axis for it."""
  ahead = {
    "token": lambda: queues.queue_by_position(choices, wanted, experts),
    "choice": lambda: queues.queue_by_choice(choices, wanted, experts),
    "priority": lambda: queues.queue_by_priority(choices, wanted, gates[:, 0], experts),
    "each": lambda: queues.queue_each_by_priority(choices, wanted, gates, experts),
  }[order]()
  return grouped(queues.slot_routing(choices, gates, wanted, ahead, experts, capacity))


def grouped(routing):
  return jax.tree.map(lambda leaf: leaf[None], routing)


def test_tokens_queue_by_position_with_all_their_choices():
  # Token 1's second choice of expert 0 is ahead of token 2's first choice of it.
  np.testing.assert_array_equal(queues.queue_by_position(CHOICES, ALL, 3), [[0, 0], [1, 1], [2, 0]])


def test_unwanted_choices_do_not_queue():
  wanted = jnp.array([[True, True], [True, False], [True, True]])
  ahead = np.asarray(queues.queue_by_position(CHOICES, wanted, 3))
  assert ahead[2, 0] == 1


def test_by_choice_all_first_choices_queue_before_any_second():
  # Expert 0: the first choices of tokens 0 and 2, then the second one of token 1.
  np.testing.assert_array_equal(queues.queue_by_choice(CHOICES, ALL, 3), [[0, 1], [0, 2], [1, 0]])


def test_with_a_priority_for_each_choice_it_does_not_matter_whether_it_is_the_first():
  priority = jnp.array([[0.6, 0.4], [0.5, 0.45], [0.9, 0.1]])
  # Expert 0: 0.9 of token 2, 0.6 of token 0, 0.45 of token 1. Expert 1: 0.5 of token 1, 0.4 of token 0.
  np.testing.assert_array_equal(queues.queue_each_by_priority(CHOICES, ALL, priority, 3), [[1, 1], [0, 2], [0, 0]])


def test_with_priority_first_choices_queue_before_second_ones_and_confident_tokens_before_others():
  ahead = queues.queue_by_priority(CHOICES, ALL, jnp.array([0.5, 0.6, 0.9]), 3)
  # Expert 0: token 2, token 0, then the second choice of token 1. Expert 1: token 1 first, token 0 second.
  np.testing.assert_array_equal(ahead, [[1, 1], [0, 2], [0, 0]])


def test_the_tables_of_a_literal_example():
  weight = jnp.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
  ahead = queues.queue_by_position(CHOICES, ALL, 4)
  routing = queues.slot_routing(CHOICES, weight, ALL, ahead, num_experts=4, capacity=2)
  np.testing.assert_array_equal(routing.token, [[0, 1], [0, 1], [2, 3], [3, 3]])
  np.testing.assert_array_equal(routing.weight, np.float32([[0.6, 0.3], [0.4, 0.7], [0.2, 0], [0, 0]]))


def test_ragged_routing_is_sorted_by_expert_then_token_with_the_unwanted_in_the_tail():
  weight = jnp.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2]])
  wanted = jnp.array([[True, True], [True, False], [True, True]])
  routing = queues.ragged_routing(CHOICES, weight, wanted, 4)
  np.testing.assert_array_equal(routing.group_sizes, [2, 2, 1, 0])
  np.testing.assert_array_equal(routing.token, [0, 2, 0, 1, 2, 3])
  np.testing.assert_array_equal(routing.weight, np.float32([0.6, 0.8, 0.4, 0.7, 0.2, 0]))


SIZES = pytest.mark.parametrize(
  ("n", "k", "experts", "capacity"), [(30, 1, 4, 5), (30, 2, 4, 7), (30, 3, 8, 30), (7, 4, 4, 1)]
)


@SIZES
@pytest.mark.parametrize("order", ["token", "choice", "priority", "each"])
def test_slots_equal_serving_one_choice_after_another(order, n, k, experts, capacity):
  example = random_choices(n, k, experts)
  confident = np.argsort(-example[1][:, 0], kind="stable")
  each = np.argsort(-example[1].ravel(), kind="stable")
  queue = {
    "token": [(token, choice) for token in range(n) for choice in range(k)],
    "choice": [(token, choice) for choice in range(k) for token in range(n)],
    "priority": [(token, choice) for choice in range(k) for token in confident],
    "each": [divmod(int(index), k) for index in each],
  }[order]
  expected = serve(*example, queue, experts, capacity)
  np.testing.assert_array_equal(token_weights(to_slots(*example, experts, capacity, order), n, experts)[0], expected)


@pytest.mark.parametrize(
  ("name", "options", "most"),
  [
    *(("hash", {}, 1), ("hash", {"hashes": 2}, 2), ("k_means", {}, 1), ("prefix_rank", {"cap": 3, "slack": None}, 3)),
    *((name, {}, 1) for name in ("reinforce", "rl_r", "straight_through")),
    *(("straight_through", {"dense_backward": True}, 8), ("relu", {}, 8)),
  ],
)
def test_without_slots_there_is_room_for_as_many_experts_as_a_token_may_have(name, options, most):
  routing = routing_of(make(name, num_experts=8, **options), random_tokens(2, 16), training=True, key=jax.random.key(0))
  assert routing.token.shape == (2, 16 * most)
  assert (routing.group_sizes.sum(1) == (routing.token < 16).sum(1)).all()
  assert routing.group_sizes.sum() <= 2 * 16 * most


def test_where_tokens_have_at_most_so_many_experts_less_room_is_the_same_routing():
  draw = np.random.default_rng(0)
  chosen = np.zeros((30, 6), bool)
  np.put_along_axis(chosen, draw.integers(6, size=(30, 2)), True, axis=1)  # one expert, or two
  weight = jnp.asarray(draw.uniform(size=chosen.shape), jnp.float32)
  room, less = (queues.ragged_of_chosen(jnp.asarray(chosen), weight, most) for most in (None, 2))
  assert (len(room.token), len(less.token)) == (180, 60)
  np.testing.assert_array_equal(room.token[:60], less.token)
  np.testing.assert_array_equal(room.weight[:60], less.weight)
  np.testing.assert_array_equal(room.group_sizes, less.group_sizes)


def test_ragged_and_slots_without_a_limit_agree():
  example = random_choices(30, 2, 4)
  ragged = grouped(queues.ragged_routing(*map(jnp.asarray, example), 4))
  np.testing.assert_array_equal(token_weights(to_slots(*example, 4, 30), 30, 4), token_weights(ragged, 30, 4))


def test_the_gradient_of_a_weight_is_one_where_it_was_kept_and_zero_where_dropped():
  choices, gates, wanted = map(jnp.asarray, random_choices(30, 2, 4))
  ahead = queues.queue_by_position(choices, wanted, 4)
  kept = wanted & (ahead < 5)
  slots = jax.grad(lambda w: queues.slot_routing(choices, w, wanted, ahead, 4, 5).weight.sum())(gates)
  ragged = jax.grad(lambda w: queues.ragged_routing(choices, w, wanted, 4).weight.sum())(gates)
  np.testing.assert_array_equal(slots, kept)
  np.testing.assert_array_equal(ragged, wanted)
