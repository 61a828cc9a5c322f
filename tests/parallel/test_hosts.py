"""How the processes of a run find each other, and what they print if they do not."""

import pytest

from moe.config import ConfigError
from moe.parallel.hosts import Member, _Watch
from tests.parallel.processes import Hosts, free_port


@pytest.fixture
def hosts(tmp_path):
  """Their trainings end before they begin."""
  config = tmp_path / "empty.py"
  config.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict()\n")
  with Hosts(config) as hosts:
    yield hosts


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:http"])
def test_an_address_has_a_host_and_a_port(address):
  with pytest.raises(ConfigError, match=r"coordinator = .*: expected HOST:PORT"):
    Member(address, 2, 0)


@pytest.mark.parametrize(("count", "index", "field"), [(2, 2, "process"), (2, -1, "process"), (0, 0, "processes")])
def test_a_process_has_an_index_below_their_number(count, index, field):
  with pytest.raises(ConfigError, match=f"^{field} = "):
    Member("[::1]:80", count, index)


class Heartbeats:
  """The coordinator's store, as far as process 0 reads who is alive."""

  def __init__(self):
    self.of = {"moe/heartbeat/0": "1 here", "moe/heartbeat/1": "1 there"}

  def key_value_dir_get(self, folder):
    return list(self.of.items())


@pytest.fixture
def watch():
  """That of process 0 of two, which the test asks who is lost; nobody was heard of yet."""
  watch = object.__new__(_Watch)
  watch._client, watch._count, watch._lost_after = Heartbeats(), 2, 30
  watch._seen = {index: ("", 0) for index in range(2)}
  return watch


def checked(watch, times):
  """What each of so many checks finds; process 0 sends a heartbeat before each."""
  found = []
  for number in range(times):
    watch._client.of["moe/heartbeat/0"] = f"{watch._seen[0][0]}{number} here"
    found.append(watch._lost())
  return found


def test_a_process_is_lost_after_ten_checks_without_a_new_heartbeat(watch):
  assert checked(watch, 10) == [None] * 10  # the first one finds a new heartbeat
  assert checked(watch, 1)[0].startswith("process 1 of 2 on there sent no heartbeat for 30 s")


def test_a_process_whose_heartbeat_has_just_arrived_is_not_lost(watch):
  watch._seen[1] = "0 there", 10
  assert checked(watch, 10) == [None] * 10


SECOND = ("--processes=2", "--process=1")


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (SECOND, "expected all of --coordinator, --processes and --process, and no --distributed"),
    (("--coordinator=h:1", *SECOND, "--distributed"), "and no --distributed"),
    (
      ("--distributed",),
      "found no cluster that describes the run's processes; give --coordinator, --processes and --process",
    ),
  ],
)
def test_a_run_whose_processes_are_unknown_fails_with_one_line(hosts, tmp_path, flags, said):
  code, lines = hosts.start(f"--workdir={tmp_path}", *flags).finish()
  assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], lines


def test_an_unreachable_coordinator_is_named_after_the_time_limit(hosts, tmp_path):
  address = f"localhost:{free_port()}"
  code, lines = hosts.start(f"--workdir={tmp_path}", f"--coordinator={address}", *SECOND, "--join_timeout=3").finish()
  assert code == 2
  problem = f"process 0 of 2, the coordinator at {address}, cannot be reached (Connection refused)"
  assert lines == [f"error: {problem}; gave up after 3 s"]


def test_the_coordinator_waits_for_the_others_until_the_time_limit(hosts, tmp_path):
  (first, *_) = hosts.start_all(1, f"--workdir={tmp_path}", "--processes=2", "--join_timeout=3")
  code, lines = first.finish()
  assert code == 2 and len(lines) == 1, lines
  assert lines[0].startswith("error: not all 2 processes joined the coordinator at localhost:")
  assert lines[0].endswith("; gave up after 3 s")
