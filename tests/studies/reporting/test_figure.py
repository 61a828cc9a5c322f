import struct

import pytest
from scipy import stats

from moe.studies import Study
from moe.studies.comparison import compare_over_tasks
from moe.studies.reporting.figure import differences, reference_of
from tests.studies.simulated import simulated_analysis

LOSSES = {"switch": 3.52, "dense": 3.5, "expert_choice": 3.45, "gshard": 3.47}


def test_differences_are_paired_by_seed_against_the_dense_arm_and_the_best_stands_first(tmp_path):
  _, analysis = simulated_analysis(tmp_path, "convergence", LOSSES)
  assert reference_of(analysis) == "dense"
  found = differences(analysis)
  assert [one.arm for one in found] == ["expert_choice", "gshard", "dense", "switch"]
  best, second = found[:2]
  # Seeds differ by 0.1 in both arms, and by another 0.001 in the better one: 0.05, 0.049, 0.048.
  margin = stats.t.ppf(0.975, 2) * 0.001 / 3**0.5
  assert (best.mean, best.low, best.high) == pytest.approx((0.049, 0.049 - margin, 0.049 + margin), abs=1e-5)
  assert second.mean == pytest.approx(0.03 - 0.002, abs=1e-5)


def test_a_causal_twin_is_compared_with_the_reference_as_it_is(tmp_path):
  _, analysis = simulated_analysis(tmp_path, "convergence", LOSSES, twins=("expert_choice",))
  (found,) = differences(analysis, "causal")
  assert (found.arm, found.mean) == ("expert_choice", pytest.approx(0.049 - 0.05, abs=1e-5))


def test_only_seeds_that_both_have_are_pairs_and_an_arm_that_diverged_stands_last(tmp_path):
  losses = {"dense": 3.5, "gshard": 3.6, "switch": float("nan")}
  _, analysis = simulated_analysis(tmp_path, "convergence", losses)
  analysis["results"] = [one for one in analysis["results"] if one["name"] != "dense/seed-0"]
  gshard = {one.arm: one for one in differences(analysis)}["gshard"]
  assert gshard.mean == pytest.approx((-0.101 - 0.102) / 2, abs=1e-5)  # of the seeds 1 and 2; that of seed 0 is -0.1
  assert differences(analysis)[-1].arm == "switch"


@pytest.mark.parametrize("arms", [2, 40])
def test_a_figure_is_small_and_of_one_width_however_many_arms_there_are(tmp_path, arms):
  losses = {"dense": 3.5, "bad": float("nan"), **{f"arm_{i}": 3.4 + i / 300 for i in range(arms)}}
  study, analysis = simulated_analysis(tmp_path, "convergence", losses, twins=("arm_0",))
  path = tmp_path / "figure.png"
  assert study.draw(analysis, path)
  content = path.read_bytes()
  assert content.startswith(b"\x89PNG") and len(content) < 300_000
  assert struct.unpack(">I", content[16:20]) == (1000,)


def test_nothing_is_drawn_of_nothing(tmp_path):
  for name in ("convergence", "finetune"):
    study, analysis = Study.choices[name](), {"study": name, "budget": "cpu", "results": [], "contrasts": []}
    assert not study.draw(analysis, tmp_path / "figure.png")
  assert not list(tmp_path.iterdir())


def test_fine_tuning_has_a_row_per_task(tmp_path):
  scores = {"a": {"rte": {0: 0.6}, "cb": {0: 0.8}}, "b": {"rte": {0: 0.5}, "cb": {0: 0.9}}}
  study = Study.choices["finetune"]()
  analysis = {"study": "finetune", "budget": "cpu", "claim": study.claim, "results": []}
  analysis["contrasts"] = compare_over_tasks(scores, "a", ("b",))
  assert study.draw(analysis, tmp_path / "figure.png")
