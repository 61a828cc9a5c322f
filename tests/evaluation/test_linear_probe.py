"""The few-shot probe against scikit-learn, and on pictures that a model tells apart."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier

from moe.data import DataError
from moe.evaluation import linear_probe
from moe.evaluation.linear_probe import fit_probe


def sample(n: int = 40, d: int = 12, classes: int = 3):
  draw = np.random.default_rng(0)
  labels = draw.integers(classes, size=n)
  return draw.normal(size=(n, d)) + 3 + labels[:, None] * draw.normal(size=d), labels


@pytest.mark.parametrize("penalty", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("n", [8, 40])  # fewer pictures than features, and more
def test_the_probe_is_scikit_learns_ridge_regression(penalty, n):
  features, labels = sample(n)
  probe = fit_probe(features, labels, 3, penalty)
  ridge = Ridge(alpha=penalty).fit(features, 2.0 * (labels[:, None] == np.arange(3)) - 1)
  np.testing.assert_allclose(probe.weights, ridge.coef_.T, atol=1e-8)
  np.testing.assert_allclose(probe.intercept, ridge.intercept_, atol=1e-8)
  others = np.random.default_rng(1).normal(size=(50, 12)) + 3
  np.testing.assert_array_equal(probe(others), RidgeClassifier(alpha=penalty).fit(features, labels).predict(others))


def test_the_shots_are_the_first_of_each_class():
  batches = [(np.arange(4)[:, None], np.array([0, 0, 0, 1])), (np.arange(4, 8)[:, None], np.array([1, 0, 1, 2]))]
  features, labels = linear_probe._shots(iter([*batches, (np.array([[8]]), np.array([2]))]), 3, 2)
  assert features[:, 0].tolist() == [0, 1, 3, 4, 7, 8]
  assert labels.tolist() == [0, 0, 1, 1, 2, 2]
  with pytest.raises(DataError, match="holds 1 pictures of class 2: expected at least --shots = 2"):
    linear_probe._shots(iter(batches), 3, 2)
