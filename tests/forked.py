"""Runs a main many times in processes that share the imports: `Forked("moe.train").run("--workdir=x")`.

A server process imports the main and what it needs, and forks for every command line. Nothing is computed before a
fork, so JAX has no threads yet that a fork would lose.
"""

import dataclasses
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile

# What the mains import when they are called.
_HEAVY = (
  "moe.training.trainer",
  "moe.evaluation.summary",
  "moe.evaluation.rules",
  "moe.report.collect",
  "moe.convert.runs",
)
_HEAVY_OF_ONE = {"moe.study": ("moe.studies.running.campaign",)}  # what a single main imports
_LONGEST = 120  # seconds


@dataclasses.dataclass(frozen=True)
class Answer:
  """How a command ended: exit code (negative for a signal), and what it wrote."""

  code: int
  out: str
  error: str


class Forked:
  """A main, such as "moe.train". Use it as a context manager, so that its server ends."""

  def __init__(self, main: str):
    command = [sys.executable, "-W", "ignore", "-m", "tests.forked", main]
    self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def run(self, *arguments: str, stdin: str = "") -> Answer:
    """Runs the command with these arguments."""
    print(json.dumps([list(arguments), stdin]), file=self._server.stdin, flush=True)
    return Answer(*json.loads(self._server.stdout.readline()))

  def __enter__(self) -> "Forked":
    return self

  def __exit__(self, *unused: object) -> None:
    self._server.stdin.close()
    self._server.wait()


def _serve(name: str) -> None:
  module = importlib.import_module(name)
  for heavy in (*_HEAVY, *_HEAVY_OF_ONE.get(name, ())):
    importlib.import_module(heavy)
  gc.freeze()  # so that a collection in a fork copies no page of what is imported
  for line in sys.stdin:
    arguments, stdin = json.loads(line)
    print(json.dumps(_answer(module, [name, *arguments], stdin)), flush=True)


def _answer(module: object, argv: list[str], stdin: str) -> tuple[int, str, str]:
  with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
    given.write(stdin.encode())
    given.seek(0)
    child = os.fork()
    if child == 0:
      for descriptor, file in enumerate((given, out, error)):
        os.dup2(file.fileno(), descriptor)
      signal.alarm(_LONGEST)
      sys.stdin = os.fdopen(0, closefd=False)
      _call(module, argv)
    _, status = os.waitpid(child, 0)
    texts = []
    for file in (out, error):
      file.seek(0)
      texts.append(file.read().decode(errors="replace"))
    return os.waitstatus_to_exitcode(status), *texts


def _call(module: object, argv: list[str]) -> None:
  """Ends the process as the command would end."""
  from moe import commands

  code = 1
  try:
    commands.run(module.main, argv)
    code = 0
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
  except BaseException:
    sys.excepthook(*sys.exc_info())
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
  _serve(sys.argv[1])
