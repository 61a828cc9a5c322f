"""Every statistic against a count by hand, a loop over sets, or a closed form."""

import collections
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from moe.report import statistics


@pytest.fixture
def chosen():
  """Unequal experts, the last of which takes nothing; some tokens have no expert."""
  draw = np.random.default_rng(0)
  return draw.random((200, 5)) < np.array([0.7, 0.5, 0.3, 0.1, 0.0])


def pairs(chosen):
  return set(zip(*np.nonzero(chosen)))


def test_experts_per_token_are_shares_of_all_tokens():
  chosen = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
  np.testing.assert_array_equal(statistics.experts_per_token_shares(chosen), [0.25, 0, 0.5, 0.25])


@pytest.mark.parametrize(("experts", "mean"), [(8, 2.0), (64, 1.3), (3, 0.0), (3, 3.0), (2048, 2.0)])
def test_the_null_is_the_binomial_distribution_with_the_observed_mean(experts, mean):
  """In exact fractions: the coefficients of 2,048 experts do not fit into float64."""
  null, p = statistics.binomial_null(experts, mean), Fraction(mean) / experts
  exact = [math.comb(experts, k) * p**k * (1 - p) ** (experts - k) for k in range(min(experts, 64) + 1)]
  np.testing.assert_allclose(null[: len(exact)], np.array(exact, np.float64), atol=1e-12)
  assert null @ np.arange(experts + 1) == pytest.approx(mean)


def test_experts_that_take_tokens_independently_give_the_null():
  chosen = np.random.default_rng(1).random((100_000, 8)) < 0.25
  np.testing.assert_allclose(
    statistics.experts_per_token_shares(chosen), statistics.binomial_null(8, chosen.sum(1).mean()), atol=0.005
  )


def test_shares_sum_to_one_and_an_expert_below_a_twentieth_of_an_even_share_is_dead(chosen):
  load = statistics.shares(chosen)
  np.testing.assert_allclose(
    load, [len([pair for pair in pairs(chosen) if pair[1] == e]) / chosen.sum() for e in range(5)]
  )
  assert statistics.dead_experts(load) == [4]
  even = 1 / 4
  assert statistics.dead_experts(np.array([0.051 * even, 0.049 * even, 2 * even, 1.9 * even])) == [1]
  np.testing.assert_array_equal(statistics.shares(np.zeros((3, 2))), [0, 0])


def test_churn_is_the_share_of_pairs_that_only_one_routing_has(chosen):
  other = np.roll(chosen, 1, axis=0)
  before, after = pairs(chosen), pairs(other)
  assert statistics.churn(chosen, other) == pytest.approx(len(before ^ after) / len(before | after))
  assert statistics.churn(chosen, chosen) == 0
  assert statistics.churn(chosen, ~chosen) == 1
  assert statistics.churn(np.zeros((3, 2), bool), np.zeros((3, 2), bool)) == 0


def test_unrelated_routings_have_the_random_churn():
  draw = np.random.default_rng(2)
  before, after = draw.random((50_000, 8)) < 0.25, draw.random((50_000, 8)) < 0.4
  assert statistics.churn(before, after) == pytest.approx(statistics.random_churn(before, after), abs=0.005)
  # p q / (p + q - p q) for densities of 1/4 each is 1/7.
  quarter = np.arange(8) < 2
  assert statistics.random_churn(quarter, quarter) == pytest.approx(6 / 7)


def test_coactivation_is_what_was_counted_over_what_chance_would_pair(chosen):
  found, experts = statistics.coactivation(chosen), range(5)
  size = chosen.sum(0)
  counted = {(i, j): sum(bool(row[i] and row[j]) for row in chosen) for i, j in itertools.permutations(experts, 2)}
  chance = {(i, j): size[i] * size[j] for i, j in counted}
  scale = sum(counted.values()) / sum(chance.values())
  for i, j in itertools.permutations(range(4), 2):
    assert found[i, j] == pytest.approx(counted[i, j] / (scale * chance[i, j]))
  assert np.isnan(np.diag(found)).all() and np.isnan(found[4]).all() and np.isnan(found[:, 4]).all()


def test_experts_that_are_drawn_evenly_in_pairs_are_coactivated_as_by_chance():
  chosen = np.array([[i in pair for i in range(4)] for pair in itertools.combinations(range(4), 2)])
  off_diagonal = statistics.coactivation(chosen)[~np.eye(4, dtype=bool)]
  np.testing.assert_allclose(off_diagonal, 1)


def test_without_a_token_that_two_experts_share_there_is_no_coactivation():
  assert np.isnan(statistics.coactivation(np.eye(3, dtype=bool))).all()


def test_top_tokens_are_counted_and_compared_with_all_tokens(chosen):
  ids = np.random.default_rng(3).zipf(1.7, 200) % 9
  for expert, (frequent, typical) in enumerate(statistics.frequent_tokens(ids, chosen, most=4, least_total=5)):
    taken, totals = collections.Counter(ids[chosen[:, expert]]), collections.Counter(ids)
    lift = {i: taken[i] / max(taken.total(), 1) / (totals[i] / 200) for i in totals}
    assert [item.count for item in frequent] == [count for _, count in taken.most_common(4)]
    trusted = sorted((lift[i] for i in totals if totals[i] >= 5 and lift[i] > 1), reverse=True)
    assert [item.lift for item in typical] == pytest.approx(trusted[:4])
    for item in (*frequent, *typical):
      assert (item.count, item.total) == (taken[item.id], totals[item.id])
      assert item.lift == pytest.approx(lift[item.id])


def test_positions_are_shares_of_each_experts_tokens():
  positions = np.arange(10).repeat(3)
  chosen = np.stack([positions < 5, positions == 9, np.ones(30, bool), np.zeros(30, bool)], axis=1)
  where = statistics.by_position(positions, chosen, most_bins=5)
  assert where.starts.tolist() == [0, 2, 4, 6, 8, 10]
  np.testing.assert_allclose(where.experts, [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0, 0, 1], [0.2] * 5, [0] * 5])
  np.testing.assert_allclose(where.everyone, [0.2] * 5)


@pytest.mark.parametrize("length", [1, 7, 8, 13])
def test_bins_begin_where_they_say(length):
  """The first position of a bin belongs to it, and the one before does not."""
  positions = np.arange(length)
  where = statistics.by_position(positions, np.eye(length, dtype=bool), most_bins=8)
  bins = where.experts.argmax(1)
  assert [bins.tolist().index(b) for b in range(len(where.starts) - 1)] == where.starts[:-1].tolist()
  assert where.starts[-1] == length


def test_a_thinned_curve_keeps_its_mean_and_a_short_one_is_left_alone():
  steps, values = np.arange(1000), np.random.default_rng(4).random((1000, 2))
  fewer, means = statistics.thin(steps, values, 50)
  assert fewer.shape == (50,) and fewer[0] == 9.5
  np.testing.assert_allclose(means.mean(0), values.mean(0))
  assert statistics.thin(steps, values, 1000)[1] is values
  assert math.isclose(means[3, 1], values[60:80, 1].mean())
