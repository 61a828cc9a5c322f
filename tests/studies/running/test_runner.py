"""How a study's processes end together. Signals are sent to all of them, as a terminal sends Ctrl-C."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from moe.commands import run_script
from moe.studies.running import runner
from moe.studies.running.folder import Folder
from moe.studies.study import Job, Result

_LONG = 300.0  # seconds, much longer than anything takes here, also on a busy machine
JOBS = [Job("one", {"data": {"source": {"name": "text"}}})]


def endless(root, jobs, commit, core):
  """In place of a worker: says its number, and does not end by itself."""
  part = pathlib.Path(root, "part")
  part.write_text(str(os.getpid()))
  part.rename(pathlib.Path(root, "worker"))
  time.sleep(_LONG)


def appears(path, process):
  """What a file holds once it is there, which the process must write before it ends."""
  while not path.exists():
    assert process.poll() is None
    time.sleep(0.02)
  return path.read_text()


def is_running(process):
  try:
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_study_leaves_no_worker_behind_and_says_nothing(number, code, tmp_path):
  command = [sys.executable, "-m", "tests.studies.running.test_runner", str(tmp_path)]
  study = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
  worker = appears(tmp_path / "worker", study)
  if number == signal.SIGINT:
    os.killpg(study.pid, number)
  else:
    study.send_signal(number)
  _, said = study.communicate(timeout=_LONG / 2)
  assert study.returncode == code
  assert not is_running(worker)
  assert "Traceback" not in said and "Error" not in said


def test_the_bar_has_the_time_left_by_what_finished_runs_took_and_fills_no_log(tmp_path, monkeypatch, capsys):
  jobs, folder = [Job(name, JOBS[0].config, weight=2.0) for name in ("old", "one", "two", "bad")], Folder(tmp_path)

  def finish(job, seconds):
    folder.write_result(Result(job.name, {}, job.compared, "", seconds, 10, {}, {}))

  finish(jobs[0], 60.0)
  events = {20: lambda: finish(jobs[1], 120.0), 40: lambda: folder.write_failed(jobs[3], "no luck")}
  looks = iter(range(60))
  workers = [types.SimpleNamespace(is_alive=lambda: next(looks, None) is not None)]
  clock = itertools.count()  # a second per look
  monkeypatch.setattr(runner, "time", types.SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: tick()))

  def tick():
    events.get(next(clock), lambda: None)()

  runner._follow(folder, jobs, jobs[1:], workers)
  said = capsys.readouterr()
  for line in ("3 runs (0 done, 03:00 left)", "3 runs (1 done, 03:00 left)", "3 runs (2 done, 01:30 left)"):
    assert line in said.err
  assert said.err.count("\r") < 15
  assert "bad failed: no luck" in said.out + said.err


if __name__ == "__main__":
  from tests.studies.running.test_runner import endless as work

  runner.work = work
  run_script(lambda: runner.run_missing(Folder(sys.argv[1]), JOBS, 1, ""))
