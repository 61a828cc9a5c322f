"""Top-p routing on probabilities small enough to follow by hand."""

import jax.numpy as jnp
import numpy as np

from moe.routing.methods.top_p import nucleus


def test_experts_are_taken_until_their_probabilities_reach_p():
  probs = jnp.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5]])
  np.testing.assert_array_equal(nucleus(probs, 0.4), [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
  np.testing.assert_array_equal(nucleus(probs, 0.7), [[1, 1, 0], [1, 0, 0], [0, 1, 1]])


def test_the_likeliest_expert_is_always_taken_and_p_of_one_takes_all():
  probs = jnp.array([[0.5, 0.3, 0.2]])
  np.testing.assert_array_equal(nucleus(probs, 1e-6), [[1, 0, 0]])
  np.testing.assert_array_equal(nucleus(probs, 1.0), [[1, 1, 1]])
