"""Dropout, and the keys that it draws from."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.nn.dropout import dropout, split_key


def test_dropout_zeroes_its_share_and_keeps_the_mean():
  x = jnp.ones(100_000)
  y = dropout(x, 0.3, jax.random.key(0))
  assert abs((y == 0).mean() - 0.3) < 0.01
  assert abs(y.mean() - 1) < 0.01
  np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)


def test_elements_are_dropped_independently_of_their_neighbours_and_of_other_keys():
  rate, shape = 0.3, (400, 250)
  dropped = [np.asarray(dropout(jnp.ones(shape), rate, jax.random.key(seed)) == 0) for seed in range(2)]
  one, other = dropped
  both = {
    "key": one & other,
    "row": one[1:] & one[:-1],
    "unit": one[:, 1:] & one[:, :-1],
    "diagonal": one[1:, 1:] & one[:-1, :-1],
  }
  # Five standard deviations of a share of 100,000.
  assert all(abs(pair.mean() - rate**2) < 5 * np.sqrt(rate**2 / one.size) for pair in both.values())
  assert abs(one.mean(0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / shape[0])
  assert abs(one.mean(1) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / shape[1])


def test_no_key_or_no_rate_means_no_dropout():
  x = jnp.arange(5.0)
  assert dropout(x, 0.3, None) is x
  assert dropout(x, 0.0, jax.random.key(0)) is x


def test_split_gives_different_keys_or_nones():
  assert split_key(None, 3) == [None] * 3
  keys = split_key(jax.random.key(0), 3)
  assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 3
