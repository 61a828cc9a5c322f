"""A lock file between processes: they are real, and one is killed."""

import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from moe.parallel import lock as locks
from moe.parallel.lock import LockedError, lock

_HOLDER = """
import pathlib, sys, time
from moe.parallel.lock import lock
with lock(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock."""
  command = [sys.executable, "-c", _HOLDER, str(tmp_path / "lock")]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def kernel_locks(request, monkeypatch):
  """File systems with and without locks of the kernel."""
  if not request.param:

    def unsupported(*unused):
      raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)


def test_a_living_process_is_named_and_a_killed_one_is_no_obstacle(tmp_path, holder, kernel_locks):
  path = tmp_path / "lock"
  with pytest.raises(LockedError, match=re.escape(f"process {holder.pid} on ")), lock(path):
    pass
  assert json.loads(path.read_text())["pid"] == holder.pid
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with lock(path):
    assert json.loads(path.read_text())["pid"] == os.getpid()
  assert not path.exists()


def test_a_second_holder_in_the_same_process_is_refused_and_the_first_keeps_it(tmp_path):
  with lock(tmp_path / "lock"):
    for _ in range(2):
      with pytest.raises(LockedError, match=f"process {os.getpid()} "), lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").exists()


def of_another_machine(path: pathlib.Path, beat: int) -> None:
  path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "Monday", "beat": beat}))


def test_a_silent_process_of_another_machine_is_given_up_after_a_while(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(locks, "PATIENCE", 0.2)
  of_another_machine(tmp_path / "lock", 3)
  with lock(tmp_path / "lock"):
    pass
  assert "sign of life of process 1 on elsewhere, since Monday" in capsys.readouterr().out


def test_a_process_of_another_machine_that_renews_the_file_is_alive(tmp_path, monkeypatch):
  of_another_machine(tmp_path / "lock", 3)
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: of_another_machine(tmp_path / "lock", 4))
  with pytest.raises(LockedError, match="process 1 on elsewhere"), lock(tmp_path / "lock"):
    pass
  assert json.loads((tmp_path / "lock").read_text())["beat"] == 4


@pytest.mark.parametrize("content", ["", "{", "[1]", "nonsense"])
def test_what_is_no_owner_is_no_obstacle(tmp_path, content):
  (tmp_path / "lock").write_text(content)
  with lock(tmp_path / "lock"):
    pass


def test_the_holder_shows_signs_of_life(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, "BEAT", 0.01)
  with lock(tmp_path / "lock"):
    for _ in range(1000):
      if locks._read(tmp_path / "lock").get("beat", 0) >= 3:
        return
      locks.time.sleep(0.01)
  raise AssertionError("no sign of life")
