"""The table of tokens and experts against hand-made routings of every kind."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.routing import Groups, RaggedRouting, SlotRouting, SoftRouting
from moe.routing.weights import expert_weights


def test_slots_of_two_groups():
  token = jnp.array([[[0, 2], [2, 3]], [[1, 1 + 2], [0, 2]]])  # n = 3 marks an empty slot
  weight = jnp.array([[[0.5, 0.25], [0.75, 0.0]], [[1.0, 0.0], [0.125, 0.375]]])
  expected = np.array([[[0.5, 0], [0, 0], [0.25, 0.75]], [[0, 0.125], [1, 0], [0, 0.375]]])
  np.testing.assert_array_equal(expert_weights(SlotRouting(token, weight), Groups(3), 2, 3), expected)
  # The same tokens as one sequence of six.
  np.testing.assert_array_equal(expert_weights(SlotRouting(token, weight), Groups(3), 1, 6), expected.reshape(1, 6, 2))
  # Two tokens of each of three sequences: a group is one position.
  by_position = expert_weights(SlotRouting(token, weight), Groups(3, by_position=True), 3, 2)
  np.testing.assert_array_equal(by_position, expected.swapaxes(0, 1))


def test_ragged_tail_reaches_no_expert_and_layers_are_stacked():
  one = RaggedRouting(jnp.array([[2, 0, 1, 3]]), jnp.array([[1.0, 2.0, 3.0, 0.0]]), jnp.array([[1, 2]]))
  two = RaggedRouting(jnp.array([[0, 1, 3, 3]]), jnp.array([[4.0, 5.0, 0.0, 0.0]]), jnp.array([[0, 2]]))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two)
  expected = np.array([[[[0, 2], [0, 3], [1, 0]]], [[[0, 4], [0, 5], [0, 0]]]])
  np.testing.assert_array_equal(expert_weights(stacked, Groups(3), 1, 3), expected)


def test_soft_routing_sums_an_experts_slots():
  combine = jnp.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
  np.testing.assert_array_equal(expert_weights(SoftRouting(combine, combine), Groups(3), 2, 3), combine.sum(-1))
