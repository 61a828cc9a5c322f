"""Studies of language models: arms that differ in their experts alone, tuned and paired alike."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from moe.config import ConfigError, build, override
from moe.parallel.mesh import make_mesh
from moe.routing import RouterConfig
from moe.studies import Study
from moe.studies.arms import ARMS, Arm, given_arm, parse_arm
from moe.studies.language_models import TUNING, LanguageModels, matched_steps
from moe.studies.settings import DECODER
from moe.studies.study import Inputs, Result
from moe.training.experiment import load_config
from moe.training.feed import open_pipeline
from moe.training.setup import Setup
from tests.studies.simulated import simulated_analysis
from tests.training.tiny import write_corpus

STUDIES = [study for study in Study.choices.values() if issubclass(study, LanguageModels)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """Text and its tokens."""
  root = tmp_path_factory.mktemp("text")
  inputs = Inputs(str(write_corpus(root / "text.jsonl", documents=200)), "", tokens=str(root / "tokens"))
  Study.choices["convergence"]().prepare(inputs)
  return inputs


def inputs_with(**arms):
  return Inputs("*.txt", "", tokens="/tokens", arms=arms)


def tuned(arm, rate, loss, seed=TUNING):
  return Result(f"{arm}/{rate}", {"arm": arm, "rate": rate, "seed": seed}, {}, "", 1.0, 1, {"loss": loss}, {})


# Pairing.


def first_state(job):
  return Setup(load_config(job.config), make_mesh()).first_state({}).params


def first_batches(job, number):
  with open_pipeline(load_config(job.config), "train", training=True) as pipeline:
    return [next(iter(pipeline)) for _ in range(number)]


def test_two_arms_of_a_seed_begin_with_the_same_weights_but_for_router_and_experts_and_read_the_same(inputs):
  jobs = {job.name: job for job in Study.choices["leak"]().jobs("smoke", inputs, [])}
  one, other, dense = (jobs[f"{arm}/rate-0.01/seed-0"] for arm in ("expert_choice_64", "causal_top2", "dense"))
  paths = [dict(jax.tree.leaves_with_path(first_state(job))) for job in (one, other, dense)]
  named = [{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found.items()} for found in paths]
  assert named[0].keys() == named[1].keys()
  for name in named[0]:
    np.testing.assert_array_equal(named[0][name], named[1][name], err_msg=name)  # routers of one shape start alike too
  shared = named[0].keys() & named[2].keys()
  assert any("attention" in name for name in shared) and any("embedding" in name for name in shared)
  for name in shared:
    np.testing.assert_array_equal(named[0][name], named[2][name], err_msg=name)
  for ours, theirs in zip(first_batches(one, 2), first_batches(dense, 2)):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  another = dataclasses.replace(dense, config=override(dense.config, [("data.seed", 1)]))
  again = first_batches(another, 1)
  assert (again[0]["targets"] != first_batches(dense, 1)[0]["targets"]).any()


# Tuning.


def test_the_rate_of_an_arm_is_that_of_its_lowest_loss_once_the_grid_is_finished():
  study = Study.choices["convergence"]()
  grid = study.setting.budgets["cpu"].rates
  losses = dict(zip(grid, (3.0, 2.0, 2.5)))
  finished = [tuned("dense", rate, loss) for rate, loss in losses.items()]
  assert study.rates("cpu", finished[:2]) == {}
  assert study.rates("cpu", [*finished, tuned("switch", grid[0], 1.0)]) == {"dense": grid[1]}


def test_the_grid_is_run_with_a_seed_that_no_comparison_has(monkeypatch):
  monkeypatch.setattr("moe.studies.language_models.matched_steps", lambda *_: 999)
  study = Study.choices["base"]()
  plan = study.setting.budgets["cpu"]
  jobs = study.jobs("cpu", inputs_with(), [])
  assert len(jobs) == len(plan.rates) * len(study.arms)  # nothing else is known yet
  assert {job.config["train"]["steps"] for job in jobs} == {999}  # as long as the others
  (seed,) = {job.config["seed"] for job in jobs}
  results = [tuned("dense", rate, loss) for rate, loss in zip(plan.rates, (3, 1, 2))]
  compared = study.jobs("cpu", inputs_with(), results)[len(jobs) :]
  assert [job.name for job in compared] == [f"dense/rate-{plan.rates[1]:g}/seed-{i}" for i in range(plan.seeds)]
  assert [job.config["data"]["seed"] for job in compared] == list(range(plan.seeds))
  assert seed not in range(plan.seeds)
  assert {job.config["train"]["steps"] for job in compared} == {999}


# Arms.


def test_studies_of_a_setting_share_the_runs_of_arms_of_one_name():
  for setting in {study.setting.name for study in STUDIES}:
    arms = {}
    for study in (one for one in STUDIES if one.setting.name == setting):
      for name, arm in study.arms.items():
        assert arms.setdefault(name, arm) == arm, f"{study.name}: {name}"


@pytest.mark.parametrize(
  ("name", "study"), [("switch", "base"), ("hash", "balance"), ("hash_clustered", "convergence")]
)
def test_a_given_arm_has_a_name_of_its_own_among_all_studies_that_share_its_folder(name, study):
  inputs = inputs_with(**{name: {"name": "switch"}})
  with pytest.raises(ConfigError, match=f"--arm = '{name}': expected a name that no arm has, as one of "):
    Study.choices[study]().jobs("cpu", inputs, [])
  Study.choices["encoder"]().all_arms("cpu", inputs_with(hash_clustered={"name": "switch"}), [])


def test_every_contrast_is_of_arms_of_the_study():
  for study in STUDIES:
    tables = {f"hash_{name}" for name in ("balanced", "clustered", "dispersed", "predicted_future")}
    named = {study.control, *(name for one in study.contrasts for name in (one.arm, one.baseline))} - {""}
    assert named <= study.arms.keys() | (tables if study.name == "hash" else set()), study.name


def test_the_ranking_has_only_routers_that_can_be_judged_without_later_tokens():
  for name, arm in Study.choices["routers"].arms.items():
    router = arm.router and build(RouterConfig, arm.router)
    assert router is None or router.is_causal(training=False) or router.causal_twin() is not None, name


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("mine", "argument = 'mine': expected FIELD=VALUE"),
    ("=3", "--arm = '=3': expected NAME=VALUES"),
    ("my/arm={}", "--arm = 'my/arm={}': expected NAME=VALUES"),
    ("mine=3", "--arm = 'mine=3': expected NAME=VALUES"),
  ],
)
def test_an_arm_has_a_name_and_values(text, message):
  with pytest.raises(ConfigError) as raised:
    parse_arm(text)
  assert message in str(raised.value)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({}, "--arm mine.router = None: expected the config section of a router"),
    ({"name": "unknown"}, "--arm mine.router.name = 'unknown': expected one of"),
    ({"routers": {}}, "--arm mine.routers = {}: expected a router's section, or one of router, parts,"),
    ({"router": {"name": "glam"}, "parts": 0}, "--arm mine.parts = 0: expected at least 1"),
    ({"router": {"name": "glam"}, "match": "none"}, "--arm mine.match = 'none': expected one of step, total, steps"),
    ({"router": "glam", "parts": "2"}, "--arm mine.parts = '2': expected a whole number"),
    ({"router": "glam", "shared": True}, "--arm mine.shared = True: expected a whole number"),
    ({"router": "glam", "experts": None}, "--arm mine.experts = None: expected a number"),
    ({"router": "glam", "model": "x"}, "--arm mine.model = 'x': expected fields of the config"),
  ],
)
def test_an_arm_that_is_none_is_refused(values, message):
  with pytest.raises(ConfigError) as raised:
    given_arm("mine", values)
  assert message in str(raised.value)


def test_an_arm_is_a_routers_section_or_the_fields_of_one():
  router = {"name": "glam", "capacity_factor": 2.0}
  assert given_arm(*parse_arm(f"mine={json.dumps(router)}")) == Arm(router=router)
  assert given_arm("mine", {"router": router, "parts": 1}) == Arm(router=router, parts=1)
  assert given_arm("mine", {"router": "glam", "experts": 2}) == Arm(router={"name": "glam"}, experts=2)


def test_a_given_arm_is_tuned_and_compared_as_the_others_and_may_not_have_the_name_of_one(monkeypatch):
  monkeypatch.setattr("moe.studies.language_models.matched_steps", lambda *_: 999)
  study, mine = Study.choices["routers"](), {"name": "glam", "capacity_factor": 2.0}
  jobs = study.jobs("cpu", inputs_with(mine=mine), [])
  assert sum(job.tags["arm"] == "mine" for job in jobs) == len(study.setting.budgets["cpu"].rates)
  with pytest.raises(ConfigError, match="--arm = 'hash': expected a name that no arm has, as one of "):
    study.jobs("cpu", inputs_with(hash=mine), [])


def test_an_arm_of_other_flops_is_refused_unless_it_trains_fewer_steps():
  plan, wide = DECODER.budgets["cpu"], Arm(router=ARMS["causal_top2"].router, parts=1)
  with pytest.raises(ConfigError, match=r"arm wide: FLOPs of a step = .*: expected .*, the dense arm's, to 2%"):
    matched_steps(DECODER, plan, "wide", wide)
  dense = matched_steps(DECODER, plan, "dense", ARMS["dense"])
  assert 0.5 < matched_steps(DECODER, plan, "wide", dataclasses.replace(wide, match="total")) / dense < 0.9
  assert matched_steps(DECODER, plan, "wide", dataclasses.replace(wide, match="steps")) == dense


def test_a_model_whose_blocks_tokens_pass_by_has_more_steps_of_fewer_flops_and_is_judged_by_a_causal_rule():
  plan, arm = DECODER.budgets["cpu"], Study.choices["routers"].arms["mixture_of_depths"]
  model = load_config(arm.tree(DECODER, plan)).model
  assert model.trains_on_future and not model.evaluates_on_future
  dense = matched_steps(DECODER, plan, "dense", ARMS["dense"])
  assert 1.2 < matched_steps(DECODER, plan, "mixture_of_depths", arm) / dense < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_arm_can_be_trained_at_the_dense_ones_flops(study):
  for budget in ("smoke", "cpu"):
    plan = study.setting.budgets[budget]
    dense = matched_steps(study.setting, plan, "dense", ARMS["dense"])
    for name, arm in study.arms.items():
      assert 0.25 < matched_steps(study.setting, plan, name, arm) / dense < 2.5, (budget, name)


# What results say.


def test_the_regime_counts_where_the_control_beats_the_dense_model(tmp_path):
  for dense, verdict in ((3.5, "held"), (2.5, "did not hold")):
    losses = {"dense": dense, "dropless_top2": 3.0, "gshard": 3.1, "expert_choice": 3.2}
    study, analysis = simulated_analysis(tmp_path / verdict, "convergence", losses)
    assert analysis["control"]["verdict"] == verdict
    start = f"Does this regime count? dropless_top2 is better than dense: {verdict}. "
    assert any(line.startswith(start) for line in study.lines(analysis))


def test_the_ranking_is_of_losses_that_know_nothing_of_later_tokens(tmp_path):
  losses = {"causal_top2": 3.0, "expert_choice": 2.96, "switch": 2.98, "hash": 3.3}
  study, analysis = simulated_analysis(tmp_path, "routers", losses, twins=("expert_choice",))
  assert [one["arm"] for one in analysis["ranking"]] == ["switch", "causal_top2", "expert_choice", "hash"]
  places = [line for line in study.lines(analysis) if line.split(" | ")[0] in ("| 1", "| 3")]
  assert places[0].startswith("| 1 | switch | +0.01")
  assert places[1].startswith("| 3 | expert_choice (its causal twin) | -0.0")


def test_the_leak_is_the_loss_of_the_twin_minus_that_of_the_own_rule(tmp_path):
  losses = {"expert_choice_64": 2.5, "causal_top2": 3.0, "dense": 3.1}
  _, analysis = simulated_analysis(tmp_path, "leak", losses, twins=("expert_choice_64",))
  assert analysis["contrasts"][0]["value"] == pytest.approx(0.05)
  assert analysis["contrasts"][0]["verdict"] == "held"


def test_runs_with_tables_are_named_once_the_tables_are_made():
  study = Study.choices["hash"]()
  before = {job.name for job in study.jobs("smoke", inputs_with(), [])}
  measured = "measures/hash/dense/rate-0.01/seed-0"
  assert measured in before and not any("clustered" in name for name in before)
  tags = {"arm": "dense", "rate": 0.01, "seed": 0, "experts": 4}
  tables = {"tables": {"clustered": "/t/clustered.npz", "balanced": "/t/balanced.npz"}}
  made = Result(measured, tags, {"measure": "hash"}, "", 1.0, 0, {}, {}, measured=tables)
  after = {job.name: job for job in study.jobs("smoke", inputs_with(), [made])}
  assert before < after.keys()
  router = after["hash_clustered/rate-0.01/seed-0"].config["model"]["decoder"]["moe"]["router"]
  assert router == {"name": "hash", "function": "clustered", "table": "/t/clustered.npz"}
  assert not any("balanced" in name for name in after)  # the smoke budget has the primary contrast alone
