"""How a study's processes end together. Signals are sent to all of them, as a terminal sends Ctrl-C."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from moe.commands import run_script
from moe.studies import runner
from moe.studies.folder import Folder
from moe.studies.study import Job

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
  command = [sys.executable, "-m", "tests.studies.test_runner", str(tmp_path)]
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


if __name__ == "__main__":
  from tests.studies.test_runner import endless as work

  runner.work = work
  run_script(lambda: runner.run_missing(Folder(sys.argv[1]), JOBS, 1, ""))
