"""Trainings over several processes of this machine, each as a user starts it on a host of its own."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

_ROOT = str(pathlib.Path(__file__).parents[2])


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@dataclasses.dataclass
class Host:
  """A process with an output that is read to its end by `finish`."""

  process: subprocess.Popen

  def finish(self) -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr that are no progress and no greeting of gloo."""
    _, error = self.process.communicate(timeout=300)
    usual = ("step ", "validation at step ", "[Gloo] ")
    return self.process.returncode, [
      line for line in error.splitlines() if not line.startswith(usual) and " parameters on " not in line
    ]


class Hosts:
  """Starts `moe.train` on several hosts; a context manager that leaves none running."""

  def __init__(self, config: pathlib.Path, compiled: str):
    self._command = [sys.executable, "-m", "moe.train", f"--config={config}"]
    self._environment = os.environ | {
      "JAX_COMPILATION_CACHE_DIR": compiled,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "",
      "PYTHONPATH": _ROOT,
    }
    self._started: list[Host] = []

  def __enter__(self) -> "Hosts":
    return self

  def __exit__(self, *unused) -> None:
    for host in self._started:
      host.process.kill()
      host.process.communicate()

  def start(self, *arguments: str, cwd: pathlib.Path | None = None) -> Host:
    """One process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self._environment}
    self._started.append(Host(subprocess.Popen([*self._command, *arguments], cwd=cwd, **options)))
    return self._started[-1]

  def start_all(self, count: int, *arguments: str, folders: list[pathlib.Path] | None = None) -> list[Host]:
    """A run over `count` processes, in working directories of their own if given."""
    shared = [f"--coordinator=localhost:{free_port()}", f"--processes={count}", "--lost_after=10", *arguments]
    return [
      self.start(f"--process={index}", *shared, cwd=folders[index] if folders else None) for index in range(count)
    ]
