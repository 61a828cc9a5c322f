import dataclasses
import json
import math
import types

import pytest

from moe.config import ConfigError, as_mapping
from moe.studies.contrasts import Contrast, answer_to
from moe.studies.running import worker
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job, Study
from moe.training.experiment import load_config
from moe.training.hooks import DivergedError
from tests.training.tiny import tiny_decoder, tiny_mapping, write_corpus


def job(name, source="", **fields):
  return Job(name, {"data": {"source": {"name": "text", "path": "here"}}, **fields}, source=source, tags={"arm": name})


@pytest.fixture
def attempts(monkeypatch):
  """The names of the jobs that were run, in order; one called `bad` fails."""
  names = []

  def run(folder, job):
    names.append(job.name)
    print(f"running {job.name}")
    if job.name == "bad":
      raise ConfigError("config.seed", -1, "expected at least 0")
    return {"step": 10, "validation": {"loss": 2.0}, "scores": {}}

  monkeypatch.setattr(worker, "_run", run)
  return names


def test_jobs_run_in_order_and_their_results_are_kept(tmp_path, attempts):
  jobs = [job("a/one"), job("a/two", source="a/one")]
  worker.work(str(tmp_path), jobs, "0123", None)
  assert attempts == ["a/one", "a/two"]
  one, two = Folder(tmp_path).results(jobs)
  assert (one.name, one.tags, one.commit) == ("a/one", {"arm": "a/one"}, "0123")
  assert (two.name, two.step, two.validation) == ("a/two", 10, {"loss": 2.0})
  assert (tmp_path / "logs" / "a" / "two.txt").read_text() == "running a/two\n"


def test_finished_jobs_are_not_run_again(tmp_path, attempts):
  worker.work(str(tmp_path), [job("one")], "", None)
  worker.work(str(tmp_path), [job("one"), job("two")], "", None)
  assert attempts == ["one", "two"]


def test_a_job_that_fails_is_remembered_and_only_those_that_start_from_it_are_left_out(tmp_path, attempts):
  jobs = [job("bad"), job("after", source="bad"), job("other")]
  worker.work(str(tmp_path), jobs, "", None)
  assert attempts == ["bad", "other"]
  folder = Folder(tmp_path)
  assert folder.failed(jobs[0]) == "config.seed = -1: expected at least 0"
  assert [result.name for result in folder.results(jobs)] == ["other"]
  folder.forget_failures(jobs)
  worker.work(str(tmp_path), jobs, "", None)
  assert attempts == ["bad", "other", "bad"]


def test_a_job_that_another_process_has_is_left_to_it(tmp_path, attempts, monkeypatch):
  jobs, folder = [job("one"), job("two")], Folder(tmp_path)
  with folder.taken(jobs[0]) as mine:
    assert mine
    # The other process finishes while this one has nothing left to do but wait.
    result = worker.Result("one", {}, jobs[0].compared, "", 1.0, 10, {}, {})
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: folder.write_result(result))
    worker.work(str(tmp_path), jobs, "", None)
  assert attempts == ["two"]


def test_a_stop_ends_the_worker_and_fails_no_job(tmp_path, monkeypatch):
  def stopped(folder, job):
    raise worker.Stopped

  monkeypatch.setattr(worker, "_run", stopped)
  worker.work(str(tmp_path), [job("one")], "", None)
  assert Folder(tmp_path).failed(job("one")) == ""
  assert Folder(tmp_path).results([job("one")]) == []


def test_a_run_that_diverges_fails_unless_it_may(tmp_path, monkeypatch):
  def diverge(tree, workdir):
    raise DivergedError("step 3: loss nan")

  monkeypatch.setattr("moe.evaluation.run.run_config", diverge)
  jobs, folder = [dataclasses.replace(job("tried"), may_diverge=True), job("compared")], Folder(tmp_path)
  worker.work(str(tmp_path), jobs, "", None)
  (result,) = folder.results(jobs)
  assert (result.name, result.validation) == ("tried", {"loss": math.inf})
  assert folder.failed(jobs[1]) == "step 3: loss nan"


def test_a_compared_run_that_diverges_has_infinite_losses_and_leaves_its_contrast_open(tmp_path):
  mapping = tiny_mapping(write_corpus(tmp_path / "text.jsonl"), steps=8, eval_every=2, eval_batches=1)
  mapping["model"] = tiny_decoder(mapping, {"name": "expert_choice"}, allow_future_leakage=True)
  jobs = []
  for seed, rate in enumerate((0.01, 1e30)):
    tree = as_mapping(
      load_config(mapping | {"optimizer": mapping["optimizer"] | {"learning_rate": rate}, "seed": seed})
    )
    jobs.append(Job(f"ours/{seed}", tree, tags={"arm": "ours", "seed": seed}, blocks=2, may_diverge=True))
  folder = Folder(tmp_path / "study")
  worker.work(str(folder.root), jobs, "", None)
  fine, lost = folder.results(jobs)
  assert 0 < lost.step < 8 and lost.flops < fine.flops and lost.parameters == fine.parameters
  assert lost.blocks == {"own": [math.inf] * 2, "causal": [math.inf] * 2} and fine.blocks.keys() == lost.blocks.keys()
  assert [point["step"] for point in lost.curve] == [point["step"] for point in fine.curve] == [2, 4, 6, 8]
  assert lost.curve[-1]["loss"] == math.inf
  runs = {"ours": {0: fine, 1: lost}, "theirs": {0: fine, 1: fine}}
  for measure in ("loss", "steps"):
    answer = answer_to(Contrast("theirs", "ours", measure), runs)
    assert (answer["verdict"], answer["diverged"]) == ("not resolved", 1)


def test_a_worker_starts_no_job_once_the_process_that_started_it_is_gone(tmp_path, attempts, monkeypatch):
  gone = types.SimpleNamespace(is_alive=lambda: False)
  monkeypatch.setattr(worker.multiprocessing, "parent_process", lambda: gone)
  worker.work(str(tmp_path), [job("one")], "", None)
  assert attempts == []


def test_seconds_are_those_of_all_attempts(tmp_path, attempts, monkeypatch):
  # Two attempts, the first of which lost its last step; then the one that finishes, in 5 s.
  records = [(10, 4.0), (20, 6.0), (30, 7.0), (30, 3.0), (40, 4.0)]
  metrics = tmp_path / "runs" / "one" / "metrics.jsonl"
  metrics.parent.mkdir(parents=True)
  lines = [json.dumps({"step": step, "kind": "train", "seconds": seconds}) for step, seconds in records]
  lines.append(json.dumps({"step": 20, "kind": "score/validation", "seconds": 6.5}))  # written after, sorted before
  metrics.write_text("\n".join(lines) + "\n")
  clock = iter([100.0, 105.0])
  monkeypatch.setattr(worker, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
  worker.work(str(tmp_path), [job("one")], "", None)
  (result,) = Folder(tmp_path).results([job("one")])
  assert result.seconds == 6.0 + 4.0 + 5.0


def test_one_run_alone_is_made_after_the_one_that_it_starts_from(tmp_path, attempts):
  folder, one, two = Folder(tmp_path), job("one"), job("two", source="one")
  with pytest.raises(ConfigError, match="--only = 'two': expected one, which it starts from, to be finished"):
    worker.run_one(folder, two, "abc")
  assert worker.run_one(folder, one, "abc")
  assert worker.run_one(folder, two, "abc")
  assert worker.run_one(folder, two, "abc")  # is finished: a job that was sent twice does nothing
  assert attempts == ["one", "two"]


def test_one_run_alone_is_retried_and_says_why_it_fails(tmp_path, attempts):
  for _ in range(2):
    with pytest.raises(StudyError, match=r"bad failed: config\.seed = -1: expected at least 0"):
      worker.run_one(Folder(tmp_path), job("bad"), "")
  assert attempts == ["bad", "bad"]


def test_one_run_alone_that_is_stopped_or_in_use_is_not_finished(tmp_path, attempts, monkeypatch):
  folder = Folder(tmp_path)
  with folder.taken(job("one")), pytest.raises(StudyError, match="one is being run by another process"):
    worker.run_one(folder, job("one"), "")

  def stopped(folder, job):
    raise worker.Stopped

  monkeypatch.setattr(worker, "_run", stopped)
  assert not worker.run_one(folder, job("one"), "")
  assert not folder.is_finished("one") and folder.failed(job("one")) == ""


def test_a_run_outside_of_the_repository_has_the_commit_that_was_sent(tmp_path, attempts):
  folder = Folder(tmp_path)
  for name in ("one", "two"):
    folder.write_sent(job(name), {"engine": "xpk", "name": "moe-1", "commit": "sent"})
  worker.run_one(folder, job("one"), "")
  worker.run_one(folder, job("two"), "here")
  assert [result.commit for result in folder.results([job("one"), job("two")])] == ["sent", "here"]
  assert folder.sent(job("one")) == {}


@pytest.mark.parametrize(("name", "value"), [("SLURM_STEP_NUM_TASKS", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")])
def test_a_run_in_one_of_several_processes_is_refused(name, value, tmp_path, attempts, monkeypatch):
  monkeypatch.setenv(name, value)
  with pytest.raises(ConfigError, match=f"{name} = '{value}': expected one process"):
    worker.run_one(Folder(tmp_path), job("one"), "")
  monkeypatch.setenv(name, "1")
  assert worker.run_one(Folder(tmp_path), job("one"), "")


def test_an_experiment_is_given_its_config_which_its_result_keeps(tmp_path, monkeypatch):
  monkeypatch.setattr(Study, "choices", dict(Study.choices))  # other tests go through all studies

  class Doubling(Study, name="doubling"):
    def experiment(self, config):
      return {"twice": 2 * config["number"]}

  jobs = [Job("three", {"number": 3}, tags={"seed": 0}, measure="doubling")]
  worker.work(str(tmp_path), jobs, "0123", None)
  (found,) = Folder(tmp_path).results(jobs)
  assert (found.measured, found.config, found.tags) == ({"twice": 6}, {"measure": "doubling", "number": 3}, {"seed": 0})
  changed = [Job("three", {"number": 4}, tags={"seed": 0}, measure="doubling")]
  with pytest.raises(StudyError, match="number was 3, is 4"):
    Folder(tmp_path).results(changed)
