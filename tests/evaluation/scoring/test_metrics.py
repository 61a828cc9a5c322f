"""Metrics of predictions, their intervals against closed forms, and what a constant answer reaches."""

import math

import numpy as np
import pytest

from moe.data.tasks.glue import TASKS
from moe.evaluation.scoring.metrics import Score, as_record, from_record, interval, of_majority, score
from tests.evaluation.scoring.tasks import accuracy


def percent(targets, predictions):
  return {"accuracy": 100 * accuracy(targets, predictions)["accuracy"]}


def mean(targets, predictions):
  return {"mean": sum(predictions) / len(predictions)}


def both(targets, predictions):
  return accuracy(targets, predictions) | mean(targets, predictions)


def wilson(right, n, z=1.959963984540054):
  """Wilson 1927: the shares p with |p - right / n| <= z sqrt(p (1 - p) / n)."""
  p = right / n
  middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (277, 277), (180, 277)])
def test_the_interval_of_an_accuracy_is_wilsons(right, n):
  targets, predictions = [1] * n, [1] * right + [0] * (n - right)
  assert interval(accuracy, "accuracy", targets, predictions) == pytest.approx(wilson(right, n))
  low, high = interval(percent, "accuracy", targets, predictions)
  assert (low / 100, high / 100) == pytest.approx(wilson(right, n))


def test_wilsons_interval_of_seven_in_ten():
  assert interval(accuracy, "accuracy", [1] * 10, [1] * 7 + [0] * 3) == pytest.approx((0.3968, 0.8922), abs=1e-4)


def test_the_interval_of_another_metric_is_that_of_its_resamples():
  """The mean of 400 numbers of unit variance has a standard error of 1/20; the same ones are drawn each time."""
  predictions = np.random.default_rng(1).normal(size=400)
  predictions = ((predictions - predictions.mean()) / predictions.std()).tolist()
  low, high = interval(mean, "mean", [0] * 400, predictions)
  assert (low, high) == pytest.approx((-1.96 / 20, 1.96 / 20), abs=0.015)
  assert (low, high) == interval(mean, "mean", [0] * 400, predictions)


def test_answers_to_one_question_are_drawn_together():
  """MultiRC's exact match is a share of 400 questions; each of 4 answers to one is right with probability 0.8."""
  task, draw = TASKS["multirc"], np.random.default_rng(0)
  examples = [{"label": 1, "idx/paragraph": n // 8, "idx/question": n // 4} for n in range(1600)]
  targets = [task.postprocess_fn("", example=one, is_target=True) for one in examples]
  answers = [task.postprocess_fn(str(draw.random() < 0.8), example=one) for one in examples]

  def evaluate(targets, predictions):
    return {name: value for metric in task.metric_fns for name, value in metric(targets, predictions).items()}

  found = evaluate(targets, answers)["exact_match"]
  right = round(400 * found)
  assert interval(evaluate, "exact_match", targets, answers) == pytest.approx(wilson(right, 400), abs=0.015)
  constants = [[task.postprocess_fn(text, example=one) for one in examples] for text in ("False", "True")]
  assert of_majority(evaluate, targets, constants)["exact_match"] == 1


def test_resamples_that_a_metric_does_not_take_are_left_out():
  """As the area under a curve does not, where a class is missing: 2 of 4 resamples of two examples."""

  def of_two_classes(targets, predictions):
    if len(set(targets)) < 2:
      raise ValueError("one class")
    return {"right": accuracy(targets, predictions)["accuracy"]}

  assert interval(of_two_classes, "right", [0, 1], [0, 0]) == (0.5, 0.5)
  assert all(map(math.isnan, interval(of_two_classes, "right", [1, 1], [0, 1])))


def test_the_majority_is_the_constant_answer_that_is_right_most_often():
  targets = [0, 1, 1, 2, 1]
  assert of_majority(accuracy, targets, [[k] * 5 for k in range(3)]) == {"accuracy": 0.6}
  assert of_majority(accuracy, targets, []) == {"accuracy": 0.6}


def test_an_answer_that_a_metric_cannot_judge_has_no_majority():
  def of_pairs(targets, predictions):
    return {"left": sum(left for left, _ in predictions)}

  assert of_majority(of_pairs, ["a", "a", "b"], []) == {}


def test_a_record_holds_the_scores_of_all_tasks_and_their_mean():
  first = score("first", both, "accuracy", [1, 1, 1, 1], [1, 1, 1, 0], 1.0)
  second = Score("a/second", "f1", 0.25, (0.1, 0.5), None, 40, {"f1": 0.25, "accuracy": 0.5})
  record = as_record([first, second])
  assert record["mean"] == 0.5 and record["first/accuracy"] == 0.75 and record["a/second/n"] == 40
  assert from_record(record) == [first, second]
