import dataclasses
import json

import pytest

from moe.config import ConfigError
from moe.data.tasks.glue import TASKS as GLUE
from moe.studies.claims.transfer.finetune import BUDGETS, PUBLISHED, PUBLISHED_8B, TASKS, Finetune
from moe.studies.study import Inputs, Result
from moe.training.experiment import load_config

INPUTS = Inputs("text/*.txt", "tfds")
# Table 2 of the paper: means over the eleven tasks.
MEANS = {"switch": 78.4, "gshard": 82.2, "expert_choice": 84.0}
MEANS_8B = {"dense": 89.2, "switch": 88.9, "gshard": 90.3, "expert_choice": 92.6}


@pytest.mark.parametrize("table, means", [(PUBLISHED, MEANS), (PUBLISHED_8B, MEANS_8B)])
def test_published_accuracies_have_their_published_means(table, means):
  assert set(table) == set(means)
  for arm, mean in means.items():
    assert sum(table[arm].values()) / 11 == pytest.approx(mean, abs=0.06)


def test_every_job_stands_after_its_source_and_has_a_name_of_its_own():
  for budget in BUDGETS:
    jobs = Finetune().jobs(budget, INPUTS, [])
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
      assert not job.source or job.source in names[:number]


def test_a_model_pretrained_elsewhere_is_tuned_on_every_task_and_nothing_is_pretrained():
  inputs = dataclasses.replace(INPUTS, text="", pretrained="/runs/mine")
  tuning = tuned("pretrained", {0.003: 0.5, 0.01: 0.7, 0.03: 0.6})
  jobs = Finetune().jobs("cpu", inputs, tuning)
  assert {job.tags["task"] for job in jobs if job.tags["rate"] == 0.01} == set(TASKS)
  assert len(jobs) == 3 + 10
  assert all(not job.source and job.config["init"]["workdir"] == "/runs/mine" for job in jobs)


def test_arms_differ_in_nothing_but_the_encoder_of_pretraining():
  jobs = {job.name: job for job in Finetune().jobs("cpu", INPUTS, [])}
  configs = {arm: jobs[f"pretrained/{arm}/seed-0"].config for arm in BUDGETS["cpu"].arms}
  rest = {arm: {**config, "model": {**config["model"], "encoder": {}}} for arm, config in configs.items()}
  assert all(config == rest["dense"] for config in rest.values())
  tuned = [job for job in jobs.values() if job.tags.get("task") == "rte" and job.tags["seed"] == 0]
  by_rate = {}
  for job in tuned:
    by_rate.setdefault(job.tags["rate"], []).append(job)
  for same in by_rate.values():
    assert {job.tags["arm"] for job in same} == set(BUDGETS["cpu"].arms)
    assert all(job.config == same[0].config for job in same)


@pytest.mark.parametrize("budget", BUDGETS)
def test_arms_have_the_same_activated_feed_forward_width_and_sparse_ones_the_same_parameters(budget):
  jobs = {job.name: job for job in Finetune().jobs(budget, INPUTS, [])}
  arms = BUDGETS[budget].arms
  width = {jobs[f"pretrained/{arm}/seed-0"].config["model"]["d_ff"] for arm in arms}
  sparse = {arm: moe for arm, moe in arms.items() if moe}
  chosen = {"switch": 1, "gshard": 2, "expert_choice": 2}
  assert {chosen[arm] * moe["d_ff"] for arm, moe in sparse.items()} == width
  assert len({moe["num_experts"] * moe["d_ff"] for moe in sparse.values()}) == 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_configs_of_pretraining_are_valid(budget):
  jobs = Finetune().jobs(budget, INPUTS, [])
  for job in jobs[: len(BUDGETS[budget].arms)]:
    loaded = load_config(job.config)
    assert (loaded.model.encoder.moe is None) == (job.tags["arm"] == "dense")
    assert loaded.data.source.path == INPUTS.text


def result(arm, task, seed, rate, held_out, validation):
  def scored(value):
    one = {"metric": "accuracy", "score": value, "interval": [value, value], "n": 9, "majority": 0.5, "metrics": {}}
    return {"mean": value, "tasks": {task: one}}

  chosen = {"step": 1, "validation": scored(validation), "held_out": scored(held_out)}
  scores = {"held_out": chosen, "published": {**chosen, "validation": scored(validation + 0.1)}}
  return Result(f"{task}/{arm}", {"arm": arm, "task": task, "seed": seed, "rate": rate}, {}, "", 1, 1, {}, scores)


def tuned(arm, held_out):
  """Results of an arm on the tasks that choose its rate, with these scores on the held-out tenth."""
  return [
    result(arm, task, 0, rate, value, validation=1 - value)
    for task in BUDGETS["cpu"].tuning
    for rate, value in held_out.items()
  ]


def test_the_held_out_tenth_chooses_the_learning_rate_not_the_validation_split():
  tuning = tuned("expert_choice", {0.003: 0.5, 0.01: 0.7, 0.03: 0.6})
  analysis = Finetune().analyse("cpu", tuning)
  assert analysis["rates"] == {"expert_choice": 0.01}
  assert analysis["accuracies"] == {"expert_choice": {task: [pytest.approx(0.3)] for task in BUDGETS["cpu"].tuning}}
  row = analysis["scores"][0]
  assert (row["rate"], row["held_out"]["score"], row["published"]["score"]) == pytest.approx((0.01, 0.3, 0.4))


def test_the_second_seed_begins_when_every_arm_has_its_rate():
  arms, tuning = BUDGETS["cpu"].arms, []
  before = Finetune().jobs("cpu", INPUTS, [])
  assert {job.tags["seed"] for job in before} == {0}
  assert {job.tags["task"] for job in before if "task" in job.tags} == set(BUDGETS["cpu"].tuning)
  for arm in arms:
    tuning += tuned(arm, {0.003: 0.4, 0.01: 0.5, 0.03: 0.4})
    assert Finetune().jobs("cpu", INPUTS, tuning[:-1])[: len(before)] == before
  after = Finetune().jobs("cpu", INPUTS, tuning)
  assert after[: len(before)] == before
  more = after[len(before) :]
  assert {(job.tags["arm"], job.tags["rate"]) for job in more if "task" in job.tags} == {(arm, 0.01) for arm in arms}
  assert [job.tags["seed"] for job in more] == [0] * 10 * 4 + [1] * 12 * 4


def test_the_report_has_every_task_the_means_and_a_sentence_for_each_contrast():
  better = {"expert_choice": 0.8, "gshard": 0.7, "switch": 0.6, "dense": 0.8}
  results = [
    result(arm, task, seed, 0.01, 0.5, value + 0.01 * (seed if arm == "dense" else -seed))
    for arm, value in better.items()
    for task in TASKS
    for seed in range(2)
  ]
  results += [one for arm in better for one in tuned(arm, {0.003: 0.4, 0.03: 0.4})]
  analysis = Finetune().analyse("cpu", results)
  lines = Finetune().lines(analysis)
  assert [line.split("|")[1].strip() for line in lines[2:14]] == [*TASKS, "mean"]
  assert "| mean | 50.0 | 80.5 | 59.5 | 69.5 | 79.5 | 78.4 | 82.3 | 84.0 |" in lines
  assert lines[-3].startswith(
    "expert_choice against gshard: held. +10.0 points in the mean of 11 tasks, [+10.0, +10.0]"
  )
  assert lines[-1].startswith("expert_choice against dense: did not hold. -1.0 points")
  assert "11 losses (sign test p = 0.00" in lines[-1]


def prepare(root, dataset, **splits):
  """Writes what TFDS says of a prepared data set."""
  name, version = dataset.split(":")
  path = root / name / version / "dataset_info.json"
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps({"splits": [{"name": split, "shardLengths": sizes} for split, sizes in splits.items()]}))


def test_all_tasks_must_be_prepared_before_anything_is_pretrained(tmp_path, monkeypatch):
  text, tfds = tmp_path / "a.txt", tmp_path / "tfds"
  text.write_text("text")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds))
  study = Finetune()
  for task in sorted(TASKS):
    for data_dir in ("", str(tfds)):
      with pytest.raises(ConfigError, match=f"expected the TFDS data set {GLUE[task].dataset} in {tfds}/"):
        study.check_inputs("cpu", Inputs(str(text), data_dir))
    prepare(tfds, GLUE[task].dataset, train=["3", "4"], validation=["2"])
  study.check_inputs("cpu", Inputs(str(text), ""))
  found = study.data_read("cpu", Inputs(str(text), ""))
  assert found["glue/cola/2.0.0 train"] == 7 and found["super_glue/cb/1.0.2 validation"] == 2 and len(found) == 22
  with pytest.raises(ConfigError, match=r"--text = .*: expected a glob that matches at least one file of text"):
    study.check_inputs("cpu", Inputs(str(tmp_path), ""))
