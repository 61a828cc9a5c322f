"""How the processes of a run find each other, and what they print if they do not."""

import pytest

from moe.config import ConfigError
from moe.parallel.hosts import Member
from tests.parallel.processes import Hosts, free_port


@pytest.fixture
def hosts(tmp_path):
  """Their trainings end before they begin."""
  config = tmp_path / "empty.py"
  config.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict()\n")
  with Hosts(config, str(tmp_path)) as hosts:
    yield hosts


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:http"])
def test_an_address_has_a_host_and_a_port(address):
  with pytest.raises(ConfigError, match=r"coordinator = .*: expected HOST:PORT"):
    Member(address, 2, 0)


@pytest.mark.parametrize(("count", "index", "field"), [(2, 2, "process"), (2, -1, "process"), (0, 0, "processes")])
def test_a_process_has_an_index_below_their_number(count, index, field):
  with pytest.raises(ConfigError, match=f"^{field} = "):
    Member("[::1]:80", count, index)


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
