"""A study that is killed: the same command afterwards finishes it, and its results are those of one left alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from moe.commands import run_script
from moe.studies.running import worker
from moe.studies.running.folder import Folder
from moe.studies.running.runner import run_missing
from moe.studies.study import Job
from tests.training.tiny import losses, tiny_mapping, write_corpus

STEPS = 60


def make_jobs(corpus):
  """A run, and another that starts from what it has learnt."""
  config = tiny_mapping(corpus, steps=STEPS, eval_every=STEPS, checkpoint_every=5)
  return [Job("one", config), Job("two", {**config, "seed": 4}, source="one")]


@pytest.fixture
def study(tmp_path):
  """Starts the command of a study in a folder, whose processes a signal can reach together."""
  corpus, started = write_corpus(tmp_path / "corpus.jsonl"), []

  def start(root):
    command = [sys.executable, "-m", "tests.studies.running.test_kill", str(root), str(corpus)]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    started.append(subprocess.Popen(command, **options))
    return started[-1]

  yield start
  for process in started:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)


def wait_for(path, process):
  while not path.exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.001)


def count(folder, job):
  """In place of a training that saves each step; it stops at the fourth, as a slow one, where there is such a file."""
  saved = folder.workdir(job.name) / "steps.txt"
  saved.parent.mkdir(parents=True, exist_ok=True)
  for step in range(len(saved.read_text().split()) if saved.exists() else 0, 6):
    if step == 3 and (folder.root / "slow").exists():
      (folder.root / "waiting").touch()
      time.sleep(300)
    with saved.open("a") as file:
      file.write(f"{step}\n")
  return {"step": 6, "validation": {"steps": saved.read_text()}, "scores": {}}


def test_the_run_of_a_worker_that_is_killed_is_resumed_by_the_next(tmp_path, monkeypatch):
  jobs = make_jobs(tmp_path / "none.jsonl")
  (tmp_path / "slow").touch()
  killed = subprocess.Popen([sys.executable, "-m", "tests.studies.running.test_kill", "count", tmp_path])
  wait_for(tmp_path / "waiting", killed)
  killed.kill()
  killed.wait()
  (tmp_path / "slow").unlink()
  assert (tmp_path / "runs" / "one" / "steps.txt").read_text() == "0\n1\n2\n"
  monkeypatch.setattr(worker, "_run", count)
  worker.work(str(tmp_path), jobs, "", None)
  assert [one.validation["steps"].split() for one in Folder(tmp_path).results(jobs)] == [list("012345")] * 2


@pytest.mark.slow
def test_a_study_whose_worker_and_then_all_of_it_is_killed_ends_as_if_nothing_had_happened(tmp_path, study):
  jobs, whole, killed = make_jobs(tmp_path / "corpus.jsonl"), tmp_path / "whole", tmp_path / "killed"
  first = study(killed)
  wait_for(killed / "runs" / "one" / "checkpoints" / "10", first)
  os.kill(json.loads((killed / "locks" / "one.lock").read_text())["pid"], signal.SIGKILL)
  _, said = first.communicate(timeout=300)
  assert first.returncode == 2
  assert said.splitlines()[-1] == ("error: 2 runs are left: a worker ended with exit code -9; run the command again")
  assert not Folder(killed).is_finished("one") and Folder(killed).failed(jobs[0]) == ""

  second = study(killed)
  wait_for(killed / "runs" / "two" / "checkpoints" / "10", second)
  os.killpg(second.pid, signal.SIGKILL)
  second.communicate(timeout=300)
  assert Folder(killed).is_finished("one") and not Folder(killed).is_finished("two")

  for root in (killed, whole):
    worker.work(str(root), jobs, "", None)
  results = [Folder(root).results(jobs) for root in (killed, whole)]
  for ours, theirs in zip(*results, strict=True):
    assert (ours.name, ours.config, ours.validation) == (theirs.name, theirs.config, theirs.validation)
    assert ours.step == theirs.step == STEPS
    assert losses(killed / "runs" / ours.name) == losses(whole / "runs" / ours.name)


if __name__ == "__main__":
  if sys.argv[1] == "count":
    worker._run = count
    worker.work(sys.argv[2], make_jobs(pathlib.Path(sys.argv[2], "none.jsonl")), "", None)
  else:
    root, corpus = map(pathlib.Path, sys.argv[1:])
    run_script(lambda: run_missing(Folder(root), make_jobs(corpus), 1, ""))
