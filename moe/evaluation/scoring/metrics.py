"""A task's metrics on a split, with an interval for the one that counts, and what a constant answer reaches."""

import contextlib
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moe.training.metrics_file import Record

# From targets and predictions to the metrics of a task, by name.
Evaluate = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]

# What a record says of a task besides its metrics, which have other names.
RESERVED = ("metric", "interval", "majority", "n")

_CONFIDENCE = 0.95
_RESAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Score:
  """How well a task's examples were answered.

  Attributes:
    task: its name.
    metric: the one that counts.
    value: of this metric.
    interval: of 95%: Wilson's (1927) for an accuracy, a percentile bootstrap over examples for any other metric; over
      groups of examples, if targets name theirs.
    majority: the metric if every answer were the most frequent one; None where that cannot be said.
    n: examples.
    metrics: all of them, by name.
  """

  task: str
  metric: str
  value: float
  interval: tuple[float, float]
  majority: float | None
  n: int
  metrics: Mapping[str, float]


def score(
  task: str,
  evaluate: Evaluate,
  metric: str,
  targets: Sequence[Any],
  predictions: Sequence[Any],
  majority: float | None,
) -> Score:
  """The score of these predictions; `metric` and `majority` as in `Score`."""
  metrics = evaluate(targets, predictions)
  between = interval(evaluate, metric, targets, predictions)
  return Score(task, metric, metrics[metric], between, majority, len(targets), metrics)


def interval(
  evaluate: Evaluate, metric: str, targets: Sequence[Any], predictions: Sequence[Any]
) -> tuple[float, float]:
  """Of 95%. A metric is an accuracy if it is the share of predictions that equal their targets, or that in percent.

  Targets with a "group" are drawn together with the others of it, as the answers to a question of MultiRC.
  """
  n = len(targets)
  if "accuracy" in metric:
    from scipy.stats import binomtest  # takes a second to import

    right = sum(_equal(*pair) for pair in zip(targets, predictions, strict=True))
    value, whole = (evaluate(targets, given)[metric] for given in (predictions, targets))
    if np.isclose(value, whole * right / n):
      low, high = binomtest(right, n).proportion_ci(_CONFIDENCE, "wilson")
      return whole * float(low), whole * float(high)
  groups: dict[Any, list[int]] = {}
  for number, target in enumerate(targets):
    groups.setdefault(target["group"] if _has_group(target) else number, []).append(number)
  members, random, drawn = list(groups.values()), np.random.default_rng(0), []
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about resamples in which a class is missing, or all targets are equal
    for _ in range(_RESAMPLES):
      picked = [members[number] for number in random.integers(0, len(members), len(members))]
      # A group that is drawn twice counts as two.
      drawn_as = [(targets[i], draw) for draw, group in enumerate(picked) for i in group]
      chosen = [{**target, "group": draw} if _has_group(target) else target for target, draw in drawn_as]
      # A user's own metric may not take a resample in which a class is missing.
      with contextlib.suppress(Exception):
        drawn.append(evaluate(chosen, [predictions[i] for group in picked for i in group])[metric])
    low, high = np.nanpercentile(drawn or [math.nan], [50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE)])
  return float(low), float(high)


def of_majority(evaluate: Evaluate, targets: Sequence[Any], constants: Sequence[Sequence[Any]]) -> dict[str, float]:
  """The metrics of the constant answer that is right most often; {} if there is none that they can judge.

  Args:
    evaluate: of the task.
    targets: of all examples.
    constants: for each constant answer the prediction on every example; none to take the most frequent target.
  """
  if not constants:
    common = Counter(map(repr, targets)).most_common(1)[0][0]
    value = next(target for target in targets if repr(target) == common)
    constants = [[value] * len(targets)]
  best = max(constants, key=lambda predictions: sum(map(_equal, targets, predictions)))
  try:
    return dict(evaluate(targets, best))
  except Exception:  # a user's own metric may not take it
    return {}


def as_record(scores: Sequence[Score]) -> Record:
  """A flat record of the tasks' scores, and their `mean`."""
  record: Record = {"mean": float(np.mean([one.value for one in scores])), "tasks": [one.task for one in scores]}
  for one in scores:
    about = {"metric": one.metric, "interval": list(one.interval), "majority": one.majority, "n": one.n}
    record |= {f"{one.task}/{name}": value for name, value in (dict(one.metrics) | about).items()}
  return record


def from_record(record: Record) -> list[Score]:
  """The inverse of `as_record`."""
  scores = []
  for task in record["tasks"]:
    of_task = {name.removeprefix(f"{task}/"): record[name] for name in record if name.startswith(f"{task}/")}
    metric, (low, high), majority, n = (of_task.pop(name) for name in RESERVED)
    majority = None if majority is None else float(majority)  # JSON has texts for numbers that are not finite
    metrics = {name: float(value) for name, value in of_task.items()}
    scores.append(Score(task, metric, metrics[metric], (float(low), float(high)), majority, n, metrics))
  return scores


def _has_group(target: Any) -> bool:
  """Whether a target names the group that it belongs to."""
  return isinstance(target, Mapping) and "group" in target


def _equal(target: Any, prediction: Any) -> bool:
  try:
    return bool(target == prediction)
  except ValueError:  # of arrays
    return False
