"""The metrics of GLUE and SuperGLUE against numbers worked out by hand, and against scikit-learn and SciPy."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from moe.data.tasks import metrics
from moe.data.tasks.glue import TASKS

# 3 true positives, 1 false positive, 1 false negative, 3 true negatives.
TARGETS, PREDICTIONS = [1, 1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]


def test_accuracy_counts_what_is_right():
  assert metrics.accuracy(TARGETS, PREDICTIONS) == {"accuracy": 6 / 8}
  assert metrics.accuracy([0, 1, 2], [0, -1, 2]) == {"accuracy": pytest.approx(2 / 3)}


def test_f1_of_three_right_one_extra_and_one_missing_is_three_quarters():
  assert metrics.f1(TARGETS, PREDICTIONS) == {"f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 1))}


def test_a_prediction_that_is_no_label_counts_as_the_wrong_one_in_f1():
  # Of the two -1, one becomes a miss and one a false alarm.
  assert metrics.f1([1, 1, 0], [1, -1, -1]) == {"f1": pytest.approx(2 * 1 / (2 * 1 + 1 + 1))}


def test_matthews_correlation_by_hand():
  # (tp tn - fp fn) / sqrt((tp + fp)(tp + fn)(tn + fp)(tn + fn))
  assert metrics.matthews(TARGETS, PREDICTIONS) == {"matthews": pytest.approx((3 * 3 - 1 * 1) / math.sqrt(4**4))}
  assert metrics.matthews([0, 1, 0], [1, 1, 1]) == {"matthews": 0.0}


def test_macro_f1_is_the_mean_over_three_labels():
  # Label 0: 1 of 2 found; label 1: found, and one false alarm; label 2: never.
  assert metrics.f1_macro([0, 0, 1, 2], [0, 1, 1, -1]) == {"f1_macro": pytest.approx((2 / 3 + 2 / 3 + 0) / 3)}


def test_correlations_by_hand():
  # Deviations (-1, 0, 1) and (-2, 1, 1): 3 / sqrt(2 * 6). Ranks 1, 2, 3 and 1, 2.5, 2.5: 1.5 / sqrt(2 * 1.5).
  targets, predictions = [1.0, 2.0, 3.0], [0.0, 3.0, 3.0]
  assert metrics.pearson(targets, predictions) == {"pearson": pytest.approx(3 / math.sqrt(12))}
  assert metrics.spearman(targets, predictions) == {"spearman": pytest.approx(1.5 / math.sqrt(3))}


def test_a_constant_correlates_with_nothing():
  assert metrics.pearson([1.0, 2.0], [3.0, 3.0]) == {"pearson": 0.0}
  assert metrics.spearman([2.0, 2.0], [1.0, 3.0]) == {"spearman": 0.0}


def test_multirc_is_judged_by_answer_and_by_question():
  targets = [{"value": v, "group": g} for v, g in [(1, "a"), (0, "a"), (1, "b"), (1, "b"), (0, "c")]]
  predictions = [{"value": v} for v in (1, 0, 1, 0, -1)]
  assert metrics.accuracy_of_answers(targets, predictions) == {"accuracy": 3 / 5}
  # 2 right, 1 missing, and the -1 counts as a false alarm.
  assert metrics.f1_of_answers(targets, predictions) == {"f1a": pytest.approx(4 / 6)}
  assert metrics.exact_match(targets, predictions) == {"exact_match": pytest.approx(1 / 3)}


def test_fixed_predictions_have_the_values_of_scikit_learn_and_scipy():
  rng = np.random.default_rng(0)
  truth, given = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
  assert metrics.accuracy(truth, given)["accuracy"] == sklearn_metrics.accuracy_score(truth, given)
  assert metrics.f1(truth, given)["f1"] == sklearn_metrics.f1_score(truth, given)
  assert metrics.matthews(truth, given)["matthews"] == sklearn_metrics.matthews_corrcoef(truth, given)
  truth, given = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
  assert metrics.f1_macro(truth, given)["f1_macro"] == sklearn_metrics.f1_score(truth, given, average="macro")
  scores, others = rng.normal(size=200), rng.normal(size=200)
  assert metrics.pearson(scores, others)["pearson"] == stats.pearsonr(scores, others)[0]
  assert metrics.spearman(scores, others)["spearman"] == stats.spearmanr(scores, others)[0]


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "exact_match"])
def test_no_examples_are_no_error(name):
  assert getattr(metrics, name)([], []) == {name: 0.0}


def test_every_task_reports_its_primary_metric_and_t5s():
  expected = {
    "cola": {"matthews", "accuracy"},
    "mrpc": {"f1", "accuracy"},
    "qqp": {"f1", "accuracy"},
    "cb": {"f1_macro", "accuracy"},
    "stsb": {"pearson", "spearman"},
    "multirc": {"f1a", "exact_match", "accuracy"},
    "ax": {"matthews", "accuracy"},
  }
  for name, task in TASKS.items():
    labels = [{"value": n, "group": 0} if name == "multirc" else n for n in (0, 1, 1)]
    reported = {key for function in task.metric_fns for key in function(labels, labels)}
    assert reported == expected.get(name, {"accuracy"}), name
    assert task.metric in reported


def test_tasks_are_imported_without_tensorflow_or_scikit_learn():
  program = "import sys, moe.data.tasks; print({'tensorflow', 'seqio', 'sklearn', 'scipy', 'jax'} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("set()\n", "")
