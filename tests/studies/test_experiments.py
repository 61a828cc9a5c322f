"""Studies of small experiments: what they measure, in closed form, and a planted case that is recovered."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from moe.config import ConfigError
from moe.data.errors import DataError
from moe.studies import Study
from moe.studies.claims.experiments import movielens, ratings, recovery
from moe.studies.claims.experiments.tuned import Plan
from moe.studies.reporting.results_file import analysis_of, file_text
from moe.studies.running.campaign import Campaign
from moe.studies.running.folder import Folder
from moe.studies.study import Inputs, Result

STUDIES = ("recovery", "movielens")


def sets(*experts):
  """Sets of experts as bool `[steps, 4]`."""
  return np.array([[expert in one for expert in range(4)] for one in experts])


# --- recovery


@pytest.mark.parametrize(
  ("weight", "k", "expected"),
  [([0.1, 0.6, 0.0, 0.3], 2, {1, 3}), ([0.005, 0.995, 0, 0], 2, {1}), ([0.25, 0.26, 0.24, 0.25], 1, {1})],
)
def test_the_support_is_the_k_highest_weights_of_those_that_are_not_tiny(weight, k, expected):
  np.testing.assert_array_equal(recovery.support(np.array(weight), k), sets(expected)[0])


def test_f1_of_literal_supports():
  true = sets({0, 1})[0]
  found = [float(recovery.f1(one, true)) for one in sets({0, 1}, {0, 2}, {0}, {2, 3}, set(), {0, 1, 2, 3})]
  np.testing.assert_allclose(found, [1, 1 / 2, 2 / 3, 0, 0, 2 / 3], rtol=1e-6)


def test_the_share_of_steps_on_which_a_literal_support_changes():
  assert float(recovery.share_of_changes(sets({0}, {0}, {1}, {0}, {0}))) == 0.5
  assert float(recovery.share_of_changes(sets({0, 1}, {0, 1}))) == 0


def test_planted_experts_are_recovered(monkeypatch):
  monkeypatch.setattr(recovery, "_SUBSETS", (2,))
  """At a rate that trains, and not at one that does not."""
  config = {"steps": 200, "batch": 32, "width": 4, "rates": [1e-6, 0.05], "seeds": [0, 1], "learned": False}
  found = recovery.Recovery().experiment(config | {"gate": {"name": "softmax"}})
  untrained, trained = found["loss"]
  assert found["f1"][1] == [1.0, 1.0]
  assert max(trained) < 0.01 < min(untrained) and max(found["changes"][1]) < 0.1


# --- movielens


def rows(*triples):
  user, film, rating = zip(*triples)
  return ratings.Rows(np.array(user), np.array(film), np.array(rating, np.float32))


def test_scores_of_literal_predictions():
  draw = np.random.default_rng(0)
  watch, rated = draw.normal(size=6), np.array([5, 0, 3, 0, 0, 1], np.float32)
  held_out = rows(*((0, 0, rating) for rating in rated))
  predicted = np.stack([watch, [1.0, 9, 0, 9, 9, -1]])  # those of films that were not watched do not count
  found = movielens.scores(predicted, held_out, 3.0, np.array([0.25, 0.75]))
  assert found["mse"] == pytest.approx((1 + 0 + 1) / 3)
  assert found["auc"] == pytest.approx(roc_auc_score(rated > 0, watch))
  entropy = -np.log(1 / (1 + np.exp(np.where(rated > 0, -watch, watch)))).mean()
  assert found["loss"] == pytest.approx(0.25 * entropy + 0.75 * 2 / 3)


def test_movement_of_literal_weights():
  """One expert goes to 1 in the first half; in the second another jumps by a half and back, in one of two tasks."""
  first = [[[0, 0], [1, 0]], [[1, 0], [1, 0]]]
  second = [[[1, 0], [1, 0]], [[1, 0.5], [1, 0]]]
  assert movielens.movement(np.array(first + second, float)) == {"variance": 0.0625 / 2, "jump": 1.0}


def test_films_that_were_not_watched_are_as_many_and_the_splits_are_disjoint():
  watched = rows(*((user, film, 4) for user in range(5) for film in range(0, 40, 2)))
  both = ratings.with_unwatched(watched, 0)
  pairs = list(zip(both.user.tolist(), both.film.tolist()))
  assert len(both) == 200 and (both.rating[100:] == 0).all() and (both.user[100:] == watched.user).all()
  assert not set(pairs[:100]) & set(pairs[100:])
  parts = ratings.split(rows(*((n, n, 1) for n in range(200))), 0)
  assert [len(part) for part in parts] == [158, 22, 20]
  assert sorted(np.concatenate([part.user for part in parts])) == list(range(200))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1\t2\t3\n", "u.data, line 1: expected the columns user, film, rating, timestamp, got 3"),
    ("1\t2\t3\t9\n944\t2\t3\t9\n", "u.data, line 2: user = '944': expected a whole number from 1 to 943"),
    ("1\t0\t3\t9\n", "u.data, line 1: film = '0': expected a whole number from 1 to 1682"),
    ("1\t2\t3.5\t9\n", "u.data, line 1: rating = '3.5': expected a whole number from 1 to 5"),
    ("", "u.data: expected lines of ratings, got none"),
  ],
)
def test_ratings_that_cannot_be_used_are_one_line(text, message, tmp_path):
  (tmp_path / "u.data").write_text(text)
  with pytest.raises(DataError) as error:
    movielens.MovieLens().check_inputs("cpu", Inputs("", str(tmp_path)))
  assert str(error.value) == f"{tmp_path}/{message}"


def test_a_folder_without_ratings_and_none_are_refused(tmp_path):
  with pytest.raises(DataError, match=r"u\.data: expected the file of ratings of MovieLens-100k"):
    movielens.MovieLens().check_inputs("cpu", Inputs("", str(tmp_path)))
  with pytest.raises(ConfigError, match="--data_dir = '': expected the folder of MovieLens-100k"):
    movielens.MovieLens().check_inputs("cpu", Inputs("", ""))


# --- both


def result(arm, use, **fields):
  return Result(f"{arm}/{use}", {"arm": arm, "use": use}, fields.pop("config"), "", 0.0, 0, {}, {}, measured=fields)


GRID = {"measure": "recovery", "rates": [0.01, 0.1, 1.0], "seeds": [1000, 1001]}


@pytest.fixture
def study(monkeypatch):
  monkeypatch.setattr(recovery.Recovery, "plans", {"cpu": Plan(GRID["rates"], 2, 3, {})})
  return recovery.Recovery()


def test_an_arm_has_the_rate_of_its_least_mean_loss_and_is_compared_seed_by_seed(study):
  results = []
  for arm, f1 in (("dselect_k", [1.0, 0.9, 1.0]), ("top_k", [0.5, 0.5, 0.6])):
    results.append(result(arm, "tuning", config=GRID, loss=[[0.1, 0.9], [0.3, 0.4], [math.nan, 0.0]]))
    same = {"loss": [[0.0] * 3], "changes": [[0.0] * 3]}
    results.append(result(arm, "compared", config={**GRID, "rates": [0.1], "seeds": [0, 1, 2]}, f1=[f1], **same))
  jobs = {job.name: job for job in study.jobs("cpu", Inputs("", ""), results)}
  assert jobs["top_k/compared"].config["rates"] == [0.1]
  assert "softmax/tuning" in jobs and "softmax/compared" not in jobs
  analysis = study.analyse("cpu", results)
  first, second = analysis["contrasts"]
  assert (first["verdict"], first["seeds"]) == ("held", [0, 1, 2])
  np.testing.assert_allclose(first["values"], [0.5, 0.4, 0.4])
  assert second["verdict"] == "did not hold"
  assert study.headline(analysis).number.startswith("DSelect-k's support has a higher F1 than top-k's: +0.4333, [+0.2")


def test_while_the_best_rate_is_at_an_end_one_beyond_it_is_tried_before_anything_is_compared(study):
  results = [result("top_k", "tuning", config=GRID, loss=[[0.1, 0.3], [0.3, 0.4], [0.5, 0.5]])]

  def of_top_k():
    jobs = [job for job in study.jobs("cpu", Inputs("", ""), results) if job.name.startswith("top_k/")]
    return {job.name: (job.config["rates"], job.config["seeds"]) for job in jobs}

  grid, further = (GRID["rates"], GRID["seeds"]), ([0.001], GRID["seeds"])
  assert of_top_k() == {"top_k/tuning": grid, "top_k/tuning/rate-0.001": further}
  assert study.analyse("cpu", results)["tuning"] == {}
  results.append(result("top_k", "tuning", config=GRID | {"rates": [0.001]}, loss=[[0.3, 0.5]]))
  assert of_top_k() == {
    "top_k/tuning": grid,
    "top_k/tuning/rate-0.001": further,
    "top_k/compared": ([0.01], [0, 1, 2]),
  }
  losses = {"0.001": 0.4, "0.01": 0.2, "0.1": 0.35, "1.0": 0.5}
  assert study.analyse("cpu", results)["tuning"]["top_k"] == {"rate": 0.01, "losses": pytest.approx(losses)}


@pytest.fixture
def folder_of_ratings(tmp_path):
  draw = np.random.default_rng(0)
  lines = [f"{draw.integers(1, 944)}\t{draw.integers(1, 1683)}\t{draw.integers(1, 6)}\t0" for _ in range(1200)]
  (tmp_path / "u.data").write_text("\n".join(lines) + "\n")
  return tmp_path


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_goes_from_its_first_experiment_to_its_verdicts(name, folder_of_ratings, here, monkeypatch):
  monkeypatch.setattr(recovery, "_SUBSETS", (2,))
  study, root = Study.choices[name](), folder_of_ratings / "study"
  arms = {arm: study.arms[arm] for arm in ("dselect_k", "top_k")}
  monkeypatch.setattr(type(study), "arms", arms)
  inputs, folder = Inputs("", str(folder_of_ratings)), Folder(root)
  campaign = Campaign(study, "smoke", inputs, folder)
  study.check_inputs("smoke", inputs)
  folder.claim(name, "smoke")
  campaign.run(1, "abc")
  text = file_text(analysis_of(study, "smoke", campaign.jobs, folder))
  analysis = json.loads(text)
  assert (analysis["failed"], analysis["finished"], analysis["runs"]) == ({}, 4, 4)
  assert {one["verdict"] for one in analysis["contrasts"]} <= {"held", "did not hold", "not resolved"}
  assert study.headline(analysis).seeds == 2 and len(study.lines(analysis)) > 4
  assert study.draw(analysis, root / "figure.png") and (root / "figure.png").exists()
  assert str(folder_of_ratings) not in text  # no path of a machine
