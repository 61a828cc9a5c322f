"""The metrics of GLUE and SuperGLUE, in seqio's convention: fn(targets, predictions) to values by name.

Values are fractions, at most 1. A prediction that is none of the labels (-1) is wrong. Metrics of no examples, and
correlations with a constant, are 0.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Correct predictions per example."""
  from sklearn.metrics import accuracy_score  # takes a second to import

  return {"accuracy": float(accuracy_score(targets, predictions)) if len(targets) else 0.0}


def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """F1 of label 1, of two labels."""
  return {"f1": _f1(targets, predictions)}


def f1_macro(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """The mean of the F1 of the three labels of CB."""
  from sklearn.metrics import f1_score

  if not len(targets):
    return {"f1_macro": 0.0}
  return {"f1_macro": float(f1_score(targets, predictions, labels=range(3), average="macro", zero_division=0))}


def matthews(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """Matthews correlation, from -1 to 1."""
  from sklearn.metrics import matthews_corrcoef

  return {"matthews": float(matthews_corrcoef(targets, predictions)) if len(targets) else 0.0}


def pearson(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Linear correlation, from -1 to 1."""
  from scipy.stats import pearsonr

  return {"pearson": _correlation(pearsonr, targets, predictions)}


def spearman(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Correlation of ranks, from -1 to 1."""
  from scipy.stats import spearmanr

  return {"spearman": _correlation(spearmanr, targets, predictions)}


def accuracy_of_answers(
  targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
  """Accuracy over all answers to all questions of MultiRC."""
  return accuracy(*_values(targets, predictions))


def f1_of_answers(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """F1a of MultiRC: over all answers to all questions (Khashabi et al. 2018)."""
  return {"f1a": _f1(*_values(targets, predictions))}


def exact_match(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The fraction of MultiRC's questions of which every answer is judged correctly."""
  right: dict[Any, bool] = defaultdict(lambda: True)
  for target, prediction in zip(targets, predictions, strict=True):
    right[target["group"]] &= target["value"] == prediction["value"]
  return {"exact_match": float(np.mean(list(right.values()))) if right else 0.0}


def _values(
  targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[int]]:
  return [target["value"] for target in targets], [prediction["value"] for prediction in predictions]


def _f1(targets: Sequence[int], predictions: Sequence[int]) -> float:
  """F1 of label 1; a prediction that is neither label counts as the wrong one of the two."""
  from sklearn.metrics import f1_score

  truth, given = np.asarray(targets, int), np.asarray(predictions, int)
  given = np.where((given == 0) | (given == 1), given, 1 - truth)
  return float(f1_score(truth, given, zero_division=0)) if len(truth) else 0.0


def _correlation(function: Any, targets: Sequence[float], predictions: Sequence[float]) -> float:
  if len(set(targets)) < 2 or len(set(predictions)) < 2:
    return 0.0
  value = float(function(targets, predictions).statistic)
  return value if math.isfinite(value) else 0.0
