"""The study `local_experts`: its problems, its systems, its training, and how epochs become an answer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.studies import Study
from moe.studies.claims.experiments import local_experts
from moe.studies.claims.experiments.formants import FORMANTS, Cases, segments, vowels
from moe.studies.claims.experiments.local_experts import LocalExperts, System, runs_of, train_all
from moe.studies.reporting.results_file import analysis_of, file_text
from moe.studies.running.campaign import Campaign
from moe.studies.running.folder import Folder
from moe.studies.study import Inputs, Result


def test_fifty_speakers_train_and_twenty_five_test_each_with_four_vowels_twice():
  train, test = vowels(0)
  assert [len(part.inputs) for part in (train, test)] == [50 * 8, 25 * 8]
  for part in (train, test):
    np.testing.assert_array_equal(part.targets.sum(0), len(part.targets) / 4)
  np.testing.assert_allclose(train.inputs.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(train.inputs.std(0), 1, rtol=1e-5)


def test_the_formants_have_the_means_and_correlations_of_their_table(monkeypatch):
  monkeypatch.setattr("moe.studies.claims.experiments.formants._SPEAKERS", {"men": 0, "women": 20_000, "children": 0})
  monkeypatch.setattr("moe.studies.claims.experiments.formants._TRAINING", 20_000)
  cases, _ = vowels(0)
  table = np.array(FORMANTS["women"])
  of = [cases.inputs[cases.targets[:, vowel] == 1].astype(float) for vowel in range(4)]
  # Standardised: differences of means are in one unit for each formant, and correlations as they were.
  means, sds = np.array([one.mean(0) for one in of]), np.array([one.std(0) for one in of])
  np.testing.assert_allclose((means[2] - means[0]) / sds[0], (table[2, :2] - table[0, :2]) / table[0, 2:4], rtol=0.02)
  np.testing.assert_allclose([np.corrcoef(one.T)[0, 1] for one in of], table[:, 4], atol=0.02)


def test_the_regression_has_two_lines_with_a_jump_of_ten():
  train, _ = segments(0)
  x, y = train.inputs[:, 0], train.targets[:, 0]
  for side, intercept in ((x < 0, 5), (x >= 0, -5)):
    slope, found = np.polyfit(x[side], y[side], 1)
    assert (slope, found) == pytest.approx((5, intercept), abs=1.2)


@pytest.mark.parametrize(
  ("arm", "weights"),
  [
    ("mixture of 4", 60),
    ("network of 8", 60),
    ("mixture of 8", 120),
    ("network of 17", 123),
    ("segments, mixture of 2", 8),
    ("segments, network of 2", 7),
  ],
)
def test_systems_that_are_compared_have_as_many_weights(arm, weights):
  one = LocalExperts.arms[arm]
  sizes = (2, 4) if one["problem"] == "vowels" else (1, 1)
  made = System(one["loss"], one["experts"], one["hidden"], True).init(jax.random.key(0), *sizes)
  assert sum(matrix.size for matrix in made.values()) == weights


def test_training_stops_where_the_error_of_the_mixture_is_down_at_the_criterion():
  """One linear expert of one weight and a bias at 0, y = 1: the error halves its root with a step of 1/4."""
  system = System("cooperative", 1, 0, False)
  cases = Cases(jnp.zeros((2, 1, 1)), jnp.ones((2, 1, 1)))
  weights = {"out": jnp.zeros((2, 1, 2, 1))}
  epochs, found = train_all(system, cases, weights, jnp.array([0.25, 0.0]), 0.01, 10)
  # (1 / 2^n)^2 <= 0.01 from n = 4 on; without a step it never is.
  np.testing.assert_array_equal(epochs, [[4, 4], [-1, -1]])
  np.testing.assert_allclose(found["out"][0, :, 0, 1, 0], 1 - 1 / 2**4)


def result(arm, epochs, reached):
  config = {"measure": "local_experts", "rates": [1.0], "seeds": list(range(len(epochs)))}
  measured = {
    "epochs": [epochs],
    "reached": [reached],
    "training": [[0.9] * len(epochs)],
    "test": [[0.9] * len(epochs)],
  }
  return Result(arm, {"arm": arm, "use": "compared"}, config, "", 0.0, 0, {}, {}, measured=measured)


def test_epochs_become_a_speedup_seed_by_seed_and_a_miss_is_censored_or_in_favour_of_the_network():
  tuning = [
    Result(arm, {"arm": arm, "use": "tuning"}, {"rates": [1.0]}, "", 0.0, 0, {}, {}, measured={"epochs": [[1.0]]})
    for arm in ("mixture of 4", "network of 8")
  ]
  mixture, network = result("mixture of 4", [10, 20, 40], [1, 1, 1]), result("network of 8", [20, 44, 100], [1, 1, 0])
  analysis = LocalExperts().analyse("cpu", [*tuning, mixture, network])
  (first,) = analysis["contrasts"]
  np.testing.assert_allclose(first["values"], [2, 2.2, 2.5])
  assert (first["verdict"], first["censored"], first["diverged"]) == ("held", 0, 0)
  (line,) = [line for line in LocalExperts().lines(json.loads(json.dumps(analysis))) if line.startswith("mixture")]
  assert line.startswith("mixture of 4 needs more than 1.5 times fewer epochs than network of 8: held. 2.22 times, [")
  missed = result("mixture of 4", [10, 100, 100], [1, 0, 0])
  (first,) = LocalExperts().analyse("cpu", [*tuning, missed, network])["contrasts"]
  assert (first["values"], first["censored"], first["verdict"]) == ((2.0, 0.0, 0.0), 2, "not resolved")


def test_a_run_that_needs_no_epoch_counts_as_one():
  assert runs_of(result("mixture of 4", [0], [1]), target=False)[0].step == 1


def test_the_study_goes_from_its_first_experiment_to_its_verdicts(tmp_path, here, monkeypatch):
  study, folder = Study.choices["local_experts"](), Folder(tmp_path / "study")
  arms = {arm: study.arms[arm] for arm in ("mixture of 4", "network of 8")}
  monkeypatch.setattr(local_experts.LocalExperts, "arms", arms)
  campaign = Campaign(study, "smoke", Inputs("", ""), folder)
  study.check_inputs("smoke", Inputs("", ""))
  campaign.run(1, "abc")
  analysis = json.loads(file_text(analysis_of(study, "smoke", campaign.jobs, folder)))
  assert (analysis["failed"], analysis["finished"], analysis["runs"]) == ({}, 4, 4)
  assert [one["verdict"] in ("held", "did not hold", "not resolved") for one in analysis["contrasts"]] == [True]
  assert study.headline(analysis).seeds == 2 and len(study.lines(analysis)) > 4
  assert study.draw(analysis, tmp_path / "figure.png")
