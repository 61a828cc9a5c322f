import json
import types

import pytest

from moe.config import ConfigError
from moe.studies import worker
from moe.studies.folder import Folder
from moe.studies.study import Job


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
    return 10, {"loss": 2.0}, {}

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
  metrics.write_text("\n".join(lines) + "\n")
  clock = iter([100.0, 105.0])
  monkeypatch.setattr(worker, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
  worker.work(str(tmp_path), [job("one")], "", None)
  (result,) = Folder(tmp_path).results([job("one")])
  assert result.seconds == 6.0 + 4.0 + 5.0
