"""Every example is in one row, no row is too full, and rows are fuller than one example each."""

import numpy as np
import pytest

from moe.data.packing import best_fit

CAPACITY = np.array([20, 12])


@pytest.fixture
def lengths() -> np.ndarray:
  return np.random.default_rng(0).integers(1, CAPACITY + 1, (300, 2))


def test_every_example_is_in_exactly_one_row(lengths):
  assert sorted(np.concatenate(best_fit(lengths, CAPACITY))) == list(range(300))


def test_no_row_is_above_capacity_in_any_feature(lengths):
  for row in best_fit(lengths, CAPACITY):
    assert (lengths[row].sum(axis=0) <= CAPACITY).all()


def test_no_two_rows_could_be_one(lengths):
  sums = np.array([lengths[row].sum(axis=0) for row in best_fit(lengths, CAPACITY)])
  together = (sums[:, None] + sums[None] <= CAPACITY).all(axis=2)
  np.fill_diagonal(together, False)
  assert not together.any()


def test_full_examples_stand_alone():
  lengths = np.array([[20, 12], [20, 12], [5, 5], [5, 5]])
  rows = best_fit(lengths, CAPACITY)
  assert sorted(row.tolist() for row in rows) == [[0], [1], [2, 3]]


def test_nothing_gives_no_rows():
  assert best_fit(np.zeros((0, 2), np.int64), CAPACITY) == []
