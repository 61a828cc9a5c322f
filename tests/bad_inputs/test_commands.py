"""Every line of `commands.txt`: a command that is refused in one line, with exit code 2 and nothing written."""

import pathlib

import pytest

from tests.bad_inputs.world import make_world
from tests.forked import Forked

LINES = (pathlib.Path(__file__).parent / "commands.txt").read_text().splitlines()
ROWS = [[part.strip() for part in line.split(" | ")] for line in LINES if not line.startswith("#")]
MODULES = {name: f"moe.{name}.__main__" for name in ("convert", "report")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def mains():
  """Starts a main when it is first asked for."""
  started: dict[str, Forked] = {}

  def main(name: str) -> Forked:
    if name not in started:
      started[name] = Forked(MODULES.get(name, f"moe.{name}"))
    return started[name]

  yield main
  for server in started.values():
    server.__exit__()


def files_of(folder):
  """All paths, and of each file its size and when it was written."""
  stats = {path: path.stat() for path in folder.rglob("*")}
  return {path: (stat.st_size, stat.st_mtime_ns) if path.is_file() else None for path, stat in stats.items()}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_command_is_refused_in_one_line_and_writes_nothing(row, world, mains):
  command, said = row
  main, *arguments = (part.format(**world) for part in command.split(" "))
  before = files_of(world["tmp"])
  answer = mains(main).run(*arguments)
  assert answer.error.startswith("error: ") and answer.error.count("\n") == 1, answer
  assert said.format(**world) in answer.error
  assert answer.code == 2, answer
  assert files_of(world["tmp"]) == before
