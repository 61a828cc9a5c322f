"""How the processes of a run find each other, and what they say where they do not."""

import pytest

from moe.config import ConfigError
from moe.parallel.hosts import Place
from tests.parallel.processes import Hosts, free_port


@pytest.fixture
def hosts(tmp_path):
  """Whose trainings end before they begin."""
  config = tmp_path / "empty.py"
  config.write_text("from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict()\n")
  with Hosts(config, str(tmp_path)) as hosts:
    yield hosts


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:http"])
def test_an_address_has_a_host_and_a_port(address):
  with pytest.raises(ConfigError, match=r"coordinator = .*: must be HOST:PORT"):
    Place(address, 2, 0)


@pytest.mark.parametrize(("count", "index", "field"), [(2, 2, "process"), (2, -1, "process"), (0, 0, "processes")])
def test_a_process_is_one_of_those_there_are(count, index, field):
  with pytest.raises(ConfigError, match=f"^{field} = "):
    Place("[::1]:80", count, index)


PLACE = ("--processes=2", "--process=1")


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (PLACE, "expected all of --coordinator, --processes and --process, without --distributed"),
    (("--coordinator=h:1", *PLACE, "--distributed"), "without --distributed"),
    (("--distributed",), "no cluster says which processes there are; give --coordinator, --processes and --process"),
  ],
)
def test_a_run_whose_processes_are_not_known_is_one_line(hosts, tmp_path, flags, said):
  code, lines = hosts.start(f"--workdir={tmp_path}", *flags).finish()
  assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], lines


def test_a_coordinator_that_cannot_be_reached_is_named_after_the_time_limit(hosts, tmp_path):
  address = f"localhost:{free_port()}"
  code, lines = hosts.start(f"--workdir={tmp_path}", f"--coordinator={address}", *PLACE, "--join_timeout=3").finish()
  assert code == 2
  problem = f"process 0 of 2, the coordinator at {address}, cannot be reached (Connection refused)"
  assert lines == [f"error: {problem}; given up after 3 s"]


def test_the_coordinator_waits_for_the_others_until_the_time_limit(hosts, tmp_path):
  (first, *_) = hosts.start_all(1, f"--workdir={tmp_path}", "--processes=2", "--join_timeout=3")
  code, lines = first.finish()
  assert code == 2 and len(lines) == 1, lines
  assert lines[0].startswith("error: not all 2 processes came to the coordinator at localhost:")
  assert lines[0].endswith("; given up after 3 s")
