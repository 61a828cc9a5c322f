"""A histogram of scores against the scores themselves."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.routing.solvers.score_histogram import BINS, histogram, share_above


def scores_of(shape, seed=0):
  return jax.nn.softmax(2 * jax.random.normal(jax.random.key(seed), shape))


def test_it_holds_the_shares_of_real_tokens():
  scores, mask = scores_of((2, 30, 4)), jnp.arange(60).reshape(2, 30) % 4 != 0
  held = histogram(scores, mask)
  np.testing.assert_allclose(held.sum(-1), np.ones(4), rtol=1e-6)
  np.testing.assert_array_equal(held, histogram(jnp.where(mask[..., None], scores, 0.99), mask))
  np.testing.assert_array_equal(histogram(scores, jnp.zeros_like(mask)), np.zeros((4, BINS)))


def test_the_share_above_is_the_empirical_one_within_a_bin():
  past, new = scores_of((1, 4000, 4)), scores_of((50, 4), seed=1)
  found = share_above(new, histogram(past, jnp.ones((1, 4000), bool)))
  expected = (np.asarray(past)[0, :, None] > np.asarray(new)).mean(0)
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_share_above_falls_from_one_to_zero_at_any_scale_and_an_empty_histogram_has_none():
  held = histogram(scores_of((1, 100, 4)), jnp.ones((1, 100), bool))
  grid = jnp.broadcast_to(jnp.linspace(0, 1, 99)[:, None], (99, 4))
  found = share_above(grid, held)
  assert (np.diff(found, axis=0) <= 1e-6).all()
  np.testing.assert_allclose(found[0], np.ones(4), rtol=1e-5)
  np.testing.assert_array_equal(found[-1], np.zeros(4))
  np.testing.assert_allclose(share_above(grid, held / 7), found, atol=1e-6)
  np.testing.assert_array_equal(share_above(grid, 0 * held), np.zeros((99, 4)))
