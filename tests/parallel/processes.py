"""Trainings over several processes of this machine, each started as a user starts it on a host of its own."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

from tests.compiler import quick_flags

# What a run that goes well writes to stderr too.
_USUAL = ("step ", "validation at step ", "[Gloo] ")


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Host:
  """A host's process."""

  process: subprocess.Popen

  def finish(self) -> tuple[int, list[str]]:
    """Waits for its end: exit code, and the lines on stderr that do not belong to a run that goes well."""
    _, error = self.process.communicate(timeout=300)
    lines = (line for line in error.splitlines() if " parameters on " not in line)
    return self.process.returncode, [line for line in lines if not line.startswith(_USUAL)]


class Hosts:
  """Starts `python -m moe.train` with a config; a context manager that leaves none running."""

  def __init__(self, config: pathlib.Path):
    self._command = [sys.executable, "-m", "moe.train", f"--config={config}"]
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_flags()}
    self._environment = os.environ | settings | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    self._started: list[Host] = []

  def __enter__(self) -> "Hosts":
    return self

  def __exit__(self, *unused) -> None:
    for host in self._started:
      host.process.kill()
      host.process.communicate()

  def start(self, *arguments: str, folder: pathlib.Path | None = None) -> Host:
    """One process, in a working directory of its own if given."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self._environment}
    self._started.append(Host(subprocess.Popen([*self._command, *arguments], cwd=folder, **options)))
    return self._started[-1]

  def start_all(self, count: int, *arguments: str, folders: list[pathlib.Path] | None = None) -> list[Host]:
    """A run over `count` processes that find each other on this machine."""
    place = f"--coordinator=localhost:{free_port()}", f"--processes={count}", "--lost_after=10"
    folders = folders or [None] * count
    return [self.start(*place, f"--process={i}", *arguments, folder=folders[i]) for i in range(count)]
