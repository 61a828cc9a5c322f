"""Ranks among earlier tokens, against counting them one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.solvers.ranks import earlier_before, rank_among_earlier

ranked = jax.jit(rank_among_earlier)


def counted(scores, mask, positions):
  """The same by two loops."""
  above, equal = np.zeros(scores.shape, int), np.zeros(scores.shape, int)
  count = np.zeros(len(scores), int)
  for t in range(len(scores)):
    earlier = [j for j in range(t - positions[t], t) if mask[j]]
    count[t] = len(earlier)
    above[t] = (scores[earlier] > scores[t]).sum(0)
    equal[t] = (scores[earlier] == scores[t]).sum(0)
  return above, equal, count


@pytest.mark.parametrize("n", [1, 2, 13, 32])
def test_ranks_count_the_real_earlier_tokens_of_the_own_sequence(n):
  rng = np.random.default_rng(n)
  scores = rng.integers(0, 6, (n, 3)).astype(np.float32)  # with many ties
  mask, positions = rng.random(n) < 0.8, np.arange(n)
  positions[n // 3 :] -= n // 3
  positions[n // 2 :] -= positions[n // 2]
  found = ranked(scores, jnp.asarray(mask), jnp.asarray(positions))
  for numbers, expected in zip((found.above, found.equal, found.count), counted(scores, mask, positions), strict=True):
    np.testing.assert_array_equal(np.asarray(numbers)[mask], expected[mask])


def test_ranks_of_a_beginning_do_not_depend_on_what_follows():
  scores = jax.random.normal(jax.random.key(0), (48, 4))
  mask, positions = jnp.arange(48) % 7 != 3, jnp.arange(48)
  whole = ranked(scores, mask, positions)
  for length in (1, 17, 32):
    beginning = ranked(scores[:length], mask[:length], positions[:length])
    jax.tree.map(lambda a, b, n=length: np.testing.assert_array_equal(a, b[:n]), beginning, whole)


def test_in_a_rising_order_everything_earlier_is_before_and_in_a_falling_one_nothing():
  np.testing.assert_array_equal(earlier_before(jnp.arange(11)), np.arange(11))
  np.testing.assert_array_equal(earlier_before(jnp.arange(11)[::-1]), np.zeros(11))


def test_padding_changes_no_rank():
  scores = jax.random.normal(jax.random.key(1), (20, 3))
  mask = jnp.arange(20) % 3 != 1
  alone = ranked(scores[mask], jnp.ones(int(mask.sum()), bool), jnp.arange(int(mask.sum())))
  among = ranked(scores, mask, jnp.arange(20))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[np.asarray(mask)]), alone, among)
