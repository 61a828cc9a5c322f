"""What results say: on simulated runs whose truth is known."""

import numpy as np
import pytest

from moe.studies.contrasts import Contrast, answer_to, by_seed, corrected, finding, headline, number, sentence
from moe.studies.study import Result

SEEDS, BLOCKS = 6, 32


def run(arm, seed, losses, twin=None, curve=(), flops=0.0):
  """A finished run with these losses of blocks, under its own rule and under that of its twin."""
  blocks = {"own": list(losses)} | ({} if twin is None else {"causal": list(twin)})
  points = [{"step": step, "loss": loss} for step, loss in curve]
  step = points[-1]["step"] if points else 0
  return Result(f"{arm}/{seed}", {"arm": arm, "seed": seed}, {}, "", 1.0, step, {}, {}, points, blocks, flops)


def simulated(gain, spread=0.01, leak=None):
  """Runs of `new` and `old`: the new one is better by `gain` nats, and by `leak` less under its twin."""
  draw, results = np.random.default_rng(0), []
  text = draw.normal(3.0, 0.1, BLOCKS)  # some blocks are harder, for every model
  for seed in range(SEEDS):
    old, new = text + draw.normal(0, spread), text - gain + draw.normal(0, spread)
    results += [run("old", seed, old), run("new", seed, new, None if leak is None else new + leak + 0.001 * seed)]
  return {arm: by_seed(results, arm) for arm in ("new", "old")}


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "held"), (0.005, "not resolved"), (-0.1, "did not hold")])
def test_a_planted_effect_is_found_and_a_null_is_not(gain, verdict):
  found = answer_to(Contrast("new", "old"), simulated(gain))
  assert found["verdict"] == verdict
  assert found["value"] == pytest.approx(gain, abs=0.02)
  assert found["seeds"] == list(range(SEEDS))
  low, high = found["interval"]
  assert low < gain < high
  assert sentence(found).startswith(f"new is better than old: {verdict}. {found['value']:+.4f} nats per token, [")


def test_a_null_is_not_resolved_by_few_seeds_and_did_not_hold_by_exact_ones():
  exact = {arm: {seed: run(arm, seed, [3.0, 2.0]) for seed in range(3)} for arm in ("new", "old")}
  assert answer_to(Contrast("new", "old"), exact)["verdict"] == "did not hold"
  one = {arm: {0: run(arm, 0, [3.0, 2.0])} for arm in ("new", "old")}
  found = answer_to(Contrast("new", "old"), one)
  assert found["verdict"] == "not resolved"
  assert sentence(found) == "new is better than old: not resolved. +0.0000 nats per token, no interval (1 seed)."


def test_arms_without_a_common_seed_have_no_answer():
  assert answer_to(Contrast("new", "old"), {"new": {0: run("new", 0, [1.0])}, "old": {1: run("old", 1, [1.0])}}) is None
  assert answer_to(Contrast("new", "old"), {"new": {0: run("new", 0, [1.0])}}) is None


def test_only_common_seeds_are_compared():
  runs = simulated(0.1)
  del runs["old"][2]
  assert answer_to(Contrast("new", "old"), runs)["seeds"] == [0, 1, 3, 4, 5]


def test_an_arm_is_compared_with_itself_under_its_twin():
  found = answer_to(Contrast("new", "new", baseline_rule="causal"), simulated(0.0, leak=0.25))
  assert found["value"] == pytest.approx(0.25 + 0.001 * np.mean(range(SEEDS)))
  assert found["verdict"] == "held"
  assert sentence(found).startswith("new is better than new under its causal twin: held. +0.2525 nats per token, [")


def test_a_router_without_a_twin_is_judged_by_its_own_rule_and_the_sentence_says_which():
  found = answer_to(Contrast("new", "old", rule="causal"), simulated(0.1, leak=0.3))
  assert found["value"] == pytest.approx(-0.2, abs=0.02)
  assert (found["rule"], found["baseline_rule"]) == ("causal", "own")
  assert sentence(found).startswith("new under its causal twin is better than old: did not hold.")


def test_a_large_claim_is_in_the_sentence():
  found = answer_to(Contrast("new", "old", more_than=0.5), simulated(0.1))
  assert found["verdict"] == "did not hold"
  assert sentence(found).startswith("new is better than old by more than 0.5 nats: did not hold.")


def test_a_run_that_diverged_leaves_the_claim_open():
  runs = simulated(0.1)
  runs["new"][0] = run("new", 0, [np.nan] * BLOCKS)
  found = answer_to(Contrast("new", "old"), runs)
  assert (found["verdict"], found["diverged"]) == ("not resolved", 1)


def curves(ours, seeds=6):
  """The old arm comes down to 2.0 at step 100, of 1 FLOP each; ours is down at it after these steps, of 2 FLOPs."""
  new, old = {}, {}
  for seed in range(seeds):
    end = ours[seed % len(ours)]
    curve = [(50, 3.0), (100, 2.5)] if end is None else [(end, 2.0), (100, 1.5)]
    new[seed] = run("new", seed, [1.0], curve=curve, flops=200.0)
    old[seed] = run("old", seed, [1.0], curve=[(50, 3.0), (100, 2.0)], flops=100.0)
  return {"new": new, "old": old}


@pytest.mark.parametrize(
  ("measure", "ours", "value", "verdict"),
  [
    ("steps", [40, 42], 2.44, "held"),
    ("steps", [45, 56], 1.99, "not resolved"),
    ("steps", [80, 82], 1.23, "did not hold"),
    ("flops", [40, 42], 1.22, "did not hold"),
  ],
)
def test_a_speed_up_is_the_ratio_of_what_the_baselines_final_loss_takes(measure, ours, value, verdict):
  found = answer_to(Contrast("new", "old", measure, more_than=2), curves(ours))
  assert found["value"] == pytest.approx(value, abs=0.01)
  assert found["verdict"] == verdict
  what = {"steps": "steps", "flops": "FLOPs"}[measure]
  start = f"new needs more than 2 times fewer {what} than old for its final loss: {verdict}. {found['value']:.2f} times"
  assert sentence(found).startswith(start)


def test_runs_that_never_reach_the_baselines_loss_count_as_slower():
  found = answer_to(Contrast("new", "old", "steps", more_than=2), curves([40, 42, None], seeds=12))
  assert found["censored"] == 4
  assert found["values"].count(0) == 4
  assert "(12 seeds; 4 never reach it; with 2.00 times the FLOPs)" in sentence(found)
  none = answer_to(Contrast("new", "old", "steps", more_than=2), curves([None], seeds=12))
  assert none["verdict"] == "did not hold"
  assert none["censored"] == 12


@pytest.mark.parametrize(
  ("values", "either_way", "verdict"),
  [
    ([0.20, 0.21, 0.22], False, "held"),
    ([0.00, 0.01, -0.01], False, "did not hold"),
    ([0.5, -0.3, 0.2], False, "not resolved"),
    ([-0.20, -0.21, -0.22], False, "did not hold"),
    ([-0.20, -0.21, -0.22], True, "held"),
    ([0.00, 0.01, -0.01], True, "did not hold"),
    ([0.5, -0.3, 0.2], True, "not resolved"),
    ([0.20], True, "not resolved"),
  ],
)
def test_a_finding_is_far_from_zero_or_near_it_or_neither(values, either_way, verdict):
  found = finding("It is so", dict(enumerate(values)), 0.05, either_way=either_way)
  assert found["verdict"] == verdict
  assert sentence(found).startswith(f"It is so: {verdict}. {np.mean(values):+.4f}, ")


def test_all_but_the_primary_answer_are_corrected():
  answers = [
    answer_to(Contrast("new", "old"), simulated(0.1)),
    finding("a", {0: 0.1, 1: 0.11}, 0),
    finding("b", {0: 0.1}, 0),
  ]
  first, second, third = corrected(answers)
  assert "holm" not in first
  assert second["holm"] == pytest.approx(min(1, 2 * second["p"]))
  assert third["holm"] == 1.0  # one seed has no p
  assert sentence(second).endswith(f"(2 seeds, p = {second['holm']:.2g} by Holm).")


ANSWER = {
  "arm": "a",
  "baseline": "b",
  "measure": "steps",
  "more_than": 2,
  "rule": "own",
  "seeds": [0, 1],
  "value": 1.5,
  "interval": [1.25, 1.75],
  "censored": 0,
  "diverged": 0,
  "verdict": "did not hold",
}


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({}, "1.50 times, [1.25, 1.75]"),
    ({"interval": [1.25, None]}, "1.50 times, [1.25, open]"),
    ({"interval": [1.25, float("inf")]}, "1.50 times, [1.25, open]"),
    ({"interval": [0, None]}, "1.50 times, no interval"),
    ({"interval": [None, None]}, "1.50 times, no interval"),
    ({"value": None, "interval": [0, 1.0]}, "no number, [0.00, 1.00]"),
    ({"value": None, "interval": [None, None]}, "no number, no interval"),
    ({"measure": "loss", "value": 0.01, "interval": [-0.01, 0.03]}, "+0.0100 nats per token, [-0.0100, +0.0300]"),
  ],
)
def test_a_number_says_which_ends_of_its_interval_are_open(changes, said):
  assert number(ANSWER | changes) == said


def test_a_sentence_says_how_many_runs_diverged_or_missed_the_target():
  said = "a needs more than 2 times fewer steps than b for its final loss: did not hold. 1.50 times, [1.25, 1.75]"
  found = sentence(ANSWER | {"censored": 2, "diverged": 1, "holm": 0.5})
  assert found == f"{said} (2 seeds; 2 never reach it; 1 diverged, p = 0.5 by Holm)."


def test_the_headline_is_the_primary_answer_and_whether_the_regime_counts():
  control = {"verdict": "not resolved"}
  found = headline([ANSWER | {"baseline_rule": None}, {}], control)
  assert (found.verdict, found.seeds, found.control) == ("did not hold", 2, "not resolved")
  assert found.number == "a against b: 1.50 times, [1.25, 1.75]"
  assert headline([finding("It is so", {0: 0.5}, 0)], None).number == "It is so: +0.5000, no interval"
  assert headline([], control) is None
  dearer = headline([ANSWER | {"baseline_rule": None, "flops": 1.04}], None)
  assert dearer.number == f"{found.number}, with 1.04 times the FLOPs"


def test_a_secondary_contrast_holds_only_if_its_p_does_after_holm():
  answers = [
    {"p": p, "verdict": verdict} for p, verdict in ((0.04, "held"), (0.03, "held"), (0.01, "held"), (0.5, "not"))
  ]
  found = corrected(answers)
  assert [one["verdict"] for one in found] == ["held", "not resolved", "held", "not"]  # 2 x 0.03 is more than 5%
  assert [one.get("holm") for one in found] == [None, pytest.approx(0.06), pytest.approx(0.03), pytest.approx(0.5)]
