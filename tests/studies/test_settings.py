"""The rule that chooses an arm's learning rate."""

import math

import pytest

from moe.studies.settings import best_rate, tried_rates

GRID = (0.01, 0.02, 0.04)


def tried(grid, loss):
  """The losses of all rates that the rule asks for, one after the other."""
  losses = {}
  while new := [rate for rate in tried_rates(grid, losses) if rate not in losses]:
    assert best_rate(grid, losses) is None
    losses[new[0]] = loss(new[0])
  return losses


@pytest.mark.parametrize(
  ("optimum", "wanted"),
  [
    (0.02, [0.01, 0.02, 0.04]),
    (0.01, [0.005, 0.01, 0.02, 0.04]),
    (0.003, [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04]),
    (0.16, [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]),
    (1e-9, [0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04]),
  ],
)
def test_while_the_best_rate_is_at_an_end_one_more_is_tried_beyond_it(optimum, wanted):
  losses = tried(GRID, lambda rate: abs(math.log(rate / optimum)))
  assert sorted(losses) == wanted
  assert best_rate(GRID, losses) == min(losses, key=losses.get)


def test_where_all_diverge_lower_rates_are_tried_and_not_for_ever():
  losses = tried(GRID, lambda rate: math.inf)
  assert sorted(losses) == [0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04]


def test_of_equal_losses_the_lower_rate_counts():
  losses = tried(GRID, {0.005: 2.0, 0.01: 1.0, 0.02: 1.0, 0.04: 3.0}.__getitem__)
  assert best_rate(GRID, losses) == 0.01


def test_one_rate_leaves_no_choice():
  assert tried_rates((0.01,), {}) == tried_rates((0.01,), {0.01: 1.0}) == [0.01]
  assert best_rate((0.01,), {}) is None
  assert best_rate((0.01,), {0.01: math.inf}) == 0.01
