"""The search for a causal expert choice: what it tries, and that what it chooses is confirmed with fresh seeds."""

import pytest

from moe.studies.claims.causal import _BASELINES, _CANDIDATES, Causal
from moe.studies.language_models import TUNING
from moe.studies.study import Inputs, Result

INPUTS = Inputs("text", "", tokens="tokens")


def result(arm, seed, loss, rate=0.01):
  blocks = {} if seed == TUNING else {"own": [loss - 0.1, loss + 0.1]}
  curve = [{"step": 1, "loss": loss}]
  tags = {"arm": arm, "seed": seed, "rate": rate}
  return Result(f"{arm}/{seed}/{rate}", tags, {}, "", 1.0, 1, {"loss": loss}, {}, curve=curve, blocks=blocks, flops=1.0)


@pytest.fixture
def study(monkeypatch):
  """No FLOPs are measured."""
  monkeypatch.setattr("moe.studies.language_models.matched_steps", lambda *_: 10)
  return Causal()


def tuned(study, budget="cpu"):
  rates = (0.005, *study.setting.budgets[budget].rates)
  return [result(arm, TUNING, 4.0 + abs(rate - 0.01), rate) for arm in study.arms for rate in rates]


def searched(better):
  return [result(arm, seed, better.get(arm, 4.0)) for arm in Causal.arms for seed in range(2)]


def test_the_search_has_two_seeds_of_every_try_and_no_more_before_it_is_finished(study):
  tries = [job for job in study.jobs("cpu", INPUTS, tuned(study)) if job.tags["seed"] != TUNING]
  assert [job.tags["seed"] for job in tries] == [0] * len(study.arms) + [1] * len(study.arms)
  found = searched({})
  assert len(study.jobs("cpu", INPUTS, tuned(study) + found[:-1])) == len(study.jobs("cpu", INPUTS, tuned(study)))


def test_the_best_of_either_side_are_run_again_with_seeds_that_chose_nothing(study):
  results = tuned(study) + searched({"threshold_finer": 3.8, "prefix_rank": 3.9, "loss_free_shared": 3.7, "dense": 3.0})
  before = study.jobs("cpu", INPUTS, tuned(study))
  after = study.jobs("cpu", INPUTS, results)
  assert after[: len(before)] == before
  fresh = [(job.tags["arm"], job.tags["seed"]) for job in after[len(before) :]]
  assert {arm for arm, _ in fresh} == {"threshold_finer", "loss_free_shared", "hash"}
  assert {seed for _, seed in fresh} == {100, 101, 102, 103}
  assert all(job.tags["rate"] == 0.01 for job in after[len(before) :])


@pytest.mark.parametrize("lost", ["prefix_rank", "dropless_top2", "hash"])
def test_a_run_that_is_missing_makes_no_other_contrast_the_primary_one(study, lost):
  fresh = [result(arm, 100 + seed, 4.0) for seed in range(3) for arm in ("prefix_rank", "dropless_top2", "hash")]
  for missing in (fresh[["prefix_rank", "dropless_top2", "hash"].index(lost)], None):
    left = [one for one in fresh if one is not missing and (missing or one.tags["arm"] != lost)]
    found = study.analyse("cpu", tuned(study) + searched({}) + left)["contrasts"]
    pairs = [(one["arm"], one["baseline"]) for one in found]
    whole = [("prefix_rank", "dropless_top2"), ("prefix_rank", "hash")]
    assert pairs == (whole if missing else whole[:1] if lost == "hash" else [])


def test_the_verdict_is_made_of_the_fresh_seeds_alone(study):
  """The candidate is better in the search, and worse in the confirmation."""
  results = tuned(study) + searched({"prefix_rank": 3.0})
  results += [result("prefix_rank", 100 + seed, 4.2 + 0.01 * seed) for seed in range(4)]
  results += [result("dropless_top2", 100 + seed, 4.0 + 0.011 * seed) for seed in range(4)]
  analysis = study.analyse("cpu", results)
  (answer,) = analysis["contrasts"]
  assert (answer["arm"], answer["baseline"], answer["verdict"]) == ("prefix_rank", "dropless_top2", "did not hold")
  assert answer["value"] == pytest.approx(-0.2, abs=0.01)
  assert analysis["arms"]["prefix_rank"]["losses"]["own"] == pytest.approx([3.0, 3.0])


def test_every_candidate_is_causal_in_evaluation_and_no_baseline_looks_ahead_in_training():
  from moe.config import build
  from moe.routing import RouterConfig

  routers = {name: build(RouterConfig, arm.router) for name, arm in {**_BASELINES, **_CANDIDATES}.items()}
  assert all(router.is_causal(training=False) for router in routers.values())
  leaky = [name for name, router in routers.items() if not router.is_causal(training=True)]
  assert leaky == ["threshold_shared_warm"]
