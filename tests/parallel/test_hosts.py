"""Processes that cannot find each other."""

import pytest

from moe.config import ConfigError
from moe.parallel.hosts import Place
from tests.parallel.processes import Hosts, free_port


@pytest.fixture
def hosts(tmp_path):
  with Hosts(tmp_path / "never_read.py", str(tmp_path)) as hosts:
    yield hosts


@pytest.mark.parametrize("address", ["host", ":80", "host:", "host:http"])
def test_an_address_has_a_host_and_a_port(address):
  with pytest.raises(ConfigError, match="coordinator = .*: must be HOST:PORT"):
    Place(address, 2, 0)


@pytest.mark.parametrize(("processes", "process", "field"), [(2, 2, "process"), (2, -1, "process"), (0, 0, "processes")])
def test_a_process_is_one_of_those_there_are(processes, process, field):
  with pytest.raises(ConfigError, match=f"^{field} = "):
    Place("[::1]:80", processes, process)


@pytest.mark.parametrize("flags", [["--process=1"], ["--coordinator=h:1", "--processes=2", "--process=0", "--distributed"]])
def test_flags_that_do_not_go_together_are_one_line(hosts, tmp_path, config, flags):
  code, lines = hosts.start(f"--workdir={tmp_path}", *flags).finish()
  assert code == 2 and len(lines) == 1, lines
  assert lines[0].startswith("error: ") and "give all of --coordinator, --processes and --process" in lines[0]
