"""A lock file between processes: they are real, and one is killed."""

import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from moe.files import open_path
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


@pytest.mark.parametrize("kernel_locks", [False], indirect=True, ids=["no flock"])
def test_where_no_start_is_known_a_dead_process_is_no_obstacle_and_a_living_one_is(tmp_path, kernel_locks, monkeypatch):
  """As on macOS, which has no /proc."""
  monkeypatch.setattr(locks, "_started", lambda pid: None)
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  path = tmp_path / "lock"
  path.write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid, "process_started": None}))
  with lock(path):
    with pytest.raises(LockedError, match=f"process {os.getpid()} on "), lock(path):
      pass
    assert json.loads(path.read_text())["pid"] == os.getpid()


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


# An object in a bucket.


@pytest.fixture
def at_once(monkeypatch):
  monkeypatch.setattr(locks, "SETTLED", 0.0)


def test_an_object_names_its_holder_while_it_is_held(bucket, at_once):
  path = open_path("--workdir", "gs://bucket/run/lock")
  with lock(path):
    assert json.loads((bucket / "run" / "lock").read_text())["pid"] == os.getpid()
    with pytest.raises(LockedError, match=f"process {os.getpid()} "), lock(path):
      pass
  assert not (bucket / "run" / "lock").exists()


def test_an_object_that_another_machine_renews_is_locked_and_a_silent_one_is_taken(bucket, at_once, monkeypatch):
  of_another_machine(bucket / "lock", 3)
  path = open_path("--workdir", "gs://bucket/lock")
  with monkeypatch.context() as renewed:
    renewed.setattr(locks.time, "sleep", lambda seconds: of_another_machine(bucket / "lock", 4))
    with pytest.raises(LockedError, match="process 1 on elsewhere"), lock(path):
      pass
  monkeypatch.setattr(locks, "PATIENCE", 0.2)
  with lock(path):
    assert json.loads((bucket / "lock").read_text())["host"] != "elsewhere"


def test_of_two_that_write_an_object_at_once_the_first_gives_way(bucket, monkeypatch):
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: of_another_machine(bucket / "lock", 0))
  with (
    pytest.raises(LockedError, match="process 1 on elsewhere"),
    lock(open_path("--workdir", "gs://bucket/lock")),
  ):
    pass
  assert json.loads((bucket / "lock").read_text())["host"] == "elsewhere"


def test_who_was_taken_for_dead_leaves_the_object_to_its_next_holder(bucket, at_once, monkeypatch):
  monkeypatch.setattr(locks, "BEAT", 0.01)
  with lock(open_path("--workdir", "gs://bucket/lock")):
    of_another_machine(bucket / "lock", 7)
    locks.time.sleep(0.1)
  assert json.loads((bucket / "lock").read_text())["beat"] == 7


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
