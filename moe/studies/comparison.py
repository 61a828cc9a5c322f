"""Comparisons of two methods over tasks: the sign test, and a paired bootstrap of the mean difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from moe.studies.statistics import holm, mean_interval, verdict

# By arm, task and seed.
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]


def compare_over_tasks(scores: Scores, arm: str, baselines: Sequence[str]) -> list[dict[str, Any]]:
  """An arm against each baseline that has scores, on the tasks of which both have a seed.

  The difference on a task is the mean over the seeds that both have; tasks are what the bootstrap draws (10,000 times,
  percentiles), so that the interval speaks of other tasks like these.

  Args:
    scores: fractions.
    arm: the method in question.
    baselines: the first is the primary contrast; the sign tests of the others are corrected by Holm.

  Returns:
    For each baseline the number of tasks, the mean difference and its 95% interval, wins, losses, ties, the two-sided
    p of the sign test (ties are left out), for secondary contrasts also `holm`, and the verdict: "held" if the interval
    is above 0, "did not hold" if it is below, otherwise "not resolved".
  """
  found = [
    _contrast(scores[arm], scores[other], arm, other) for other in baselines if arm in scores and other in scores
  ]
  found = [one for one in found if one["tasks"] > 1]
  secondary = [one for one in found if one["baseline"] != baselines[0]]
  for one, p in zip(secondary, holm([one["sign_test_p"] for one in secondary])):
    one["holm"] = p
  return found


def _contrast(
  ours: Mapping[str, Mapping[int, float]], theirs: Mapping[str, Mapping[int, float]], arm: str, baseline: str
):
  pairs = {
    task: [score - theirs[task][seed] for seed, score in scores.items() if seed in theirs[task]]
    for task, scores in ours.items()
    if task in theirs
  }
  tasks = [task for task, found in pairs.items() if found]
  differences = np.array([np.mean(pairs[task]) for task in tasks])
  low, high = mean_interval(differences) if len(tasks) > 1 else (np.nan, np.nan)
  wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
  return {
    "arm": arm,
    "baseline": baseline,
    "tasks": len(tasks),
    "differences": dict(zip(tasks, differences.tolist())),
    "mean": float(differences.mean()) if len(tasks) else None,
    "interval": [low, high],
    "wins": wins,
    "losses": losses,
    "ties": len(tasks) - wins - losses,
    "sign_test_p": float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    "verdict": verdict(low, high),
  }
