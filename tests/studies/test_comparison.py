import numpy as np
import pytest

from moe.studies.comparison import compare_over_tasks

TASKS = [f"task-{i}" for i in range(11)]


def scores(differences, base=0.5):
  """Two arms, of which "new" is better than "old" by these differences, with one seed."""
  old = {task: {0: base} for task in TASKS}
  return {"old": old, "new": {task: {0: base + difference} for task, difference in zip(TASKS, differences)}}


@pytest.mark.parametrize("wins, p", [(11, 2 / 2**11), (9, 0.06543), (7, 0.54883)])
def test_the_sign_test_counts_wins_and_losses(wins, p):
  (found,) = compare_over_tasks(scores([0.01] * wins + [-0.01] * (11 - wins)), "new", ("old",))
  assert (found["wins"], found["losses"], found["ties"]) == (wins, 11 - wins, 0)
  assert found["sign_test_p"] == pytest.approx(p, abs=5e-6)


def test_ties_are_left_out_of_the_sign_test():
  (found,) = compare_over_tasks(scores([0.01] * 4 + [0.0] * 7), "new", ("old",))
  assert (found["wins"], found["losses"], found["ties"]) == (4, 0, 7)
  assert found["sign_test_p"] == pytest.approx(2 / 2**4)


def test_each_verdict_has_its_interval():
  spread = np.linspace(-0.02, 0.02, 11)
  verdicts = {}
  for name, shift in {"better": 0.03, "worse": -0.03, "equal": 0.0}.items():
    (found,) = compare_over_tasks(scores(spread + shift), "new", ("old",))
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert found["mean"] == pytest.approx(shift)
    verdicts[name] = found["verdict"]
  assert verdicts == {"better": "held", "worse": "did not hold", "equal": "not resolved"}


def test_differences_are_paired_by_seed_and_only_common_tasks_count():
  both = {
    "new": {"a": {0: 0.5, 1: 0.9}, "b": {0: 0.7, 1: 0.6}, "c": {0: 1.0}, "e": {0: 1.0}},
    "old": {"a": {0: 0.4, 1: 0.6}, "b": {1: 0.5}, "d": {0: 0.0}, "e": {1: 0.0}},
  }
  (found,) = compare_over_tasks(both, "new", ("old",))
  assert found["differences"] == pytest.approx({"a": 0.2, "b": 0.1})
  assert found["mean"] == pytest.approx(0.15)


def test_secondary_contrasts_are_corrected_and_the_primary_one_is_not():
  arms = scores([0.01] * 11)
  arms |= {"second": arms["old"], "third": {task: {0: 0.5 + 0.02 * (i % 2)} for i, task in enumerate(TASKS)}}
  primary, second, third = compare_over_tasks(arms, "new", ("old", "second", "third"))
  assert "holm" not in primary
  assert second["holm"] == pytest.approx(2 * second["sign_test_p"])
  assert third["holm"] == pytest.approx(third["sign_test_p"])
