"""A checkout to launch from, and a PATH with stand-ins for the clouds' tools."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Any tool: logs its arguments and its input, then answers as the test wants.
_TOOL = """#!{python}
import json, os, pathlib, sys
fake = pathlib.Path(os.environ["FAKE"])
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
if call[0] == "sbatch":
  call.append(sys.stdin.read())
with (fake / "calls.jsonl").open("a") as calls:
  calls.write(json.dumps(call) + "\\n")
answer = fake / "answers" / call[0]
code, _, text = answer.read_text().partition(" ") if answer.exists() else ("0", "", "")
print(text, end="")
sys.exit(int(code))
"""
_UV = """#!/bin/bash
[ "$1" = venv ] && mkdir -p "$4/bin" && cp "$FAKE/python" "$4/bin/python"
exit 0
"""
# A training: keeps its arguments, then does what the test wants the n-th one on this host to do.
_PYTHON = """#!/bin/bash
number=$(($(ls "$FAKE/trained" | grep -c "^$(basename "$HOME")-") + 1))
printf '%s\\0' "$@" > "$FAKE/trained/$(basename "$HOME")-$number"
echo "training $number"
source "$FAKE/training"
"""
_DF = """#!/bin/bash
echo Filesystem
case "$2" in "$FAKE"/disk*) echo 10.0.0.2:/moe ;; *) echo /dev/root ;; esac
"""


def executable(path: pathlib.Path, text: str) -> None:
  path.write_text(text)
  path.chmod(0o755)


class Cloud:
  """A checkout in `checkout`, tools on PATH, and a log of their calls."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.checkout, self.bin = folder, folder / "checkout", folder / "bin"
    for name in ("hosts/0", "hosts/1", "answers", "fails", "trained", "disk", "bin"):
      (folder / name).mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", self.checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (self.checkout / "configs").mkdir()
    (self.checkout / "configs" / "new.py").write_text("a config that nobody has committed yet")
    (self.checkout / "secret").write_text("ignored")
    (self.checkout / ".gitignore").write_text("build/\nsecret\n")
    subprocess.run(["git", "init", "--quiet"], cwd=self.checkout, check=True)
    executable(self.bin / "gcloud", f"#!{sys.executable}\n{(ROOT / 'tests/scripts/fake_gcloud.py').read_text()}")
    for tool in ("xpk", "kubectl", "sbatch", "scancel", "srun", "squeue", "scontrol", "sudo"):
      executable(self.bin / tool, _TOOL.format(python=sys.executable))
    executable(self.bin / "curl", f"#!/bin/bash\necho 'mkdir -p ~/.local/bin; cp {folder}/uv ~/.local/bin/uv'\n")
    executable(self.bin / "df", _DF)
    executable(folder / "uv", _UV)
    executable(folder / "python", _PYTHON)
    self.states("ACTIVE")
    self.training("exit 0")
    self.workdir = str(folder / "disk" / "it's a run")

  def states(self, *states: str) -> None:
    """The states of the queued resource, one per query."""
    (self.folder / "states").write_text("\n".join(states))

  def training(self, script: str) -> None:
    """What a training does; $number counts those on its host."""
    (self.folder / "training").write_text(script)

  def fail(self, verb: str, times: int = 1) -> None:
    (self.folder / "fails" / verb).write_text("x" * times)

  def answer(self, tool: str, code: int = 0, text: str = "") -> None:
    (self.folder / "answers" / tool).write_text(f"{code} {text}")

  @property
  def environment(self) -> dict[str, str]:
    return os.environ | {
      "FAKE": str(self.folder),
      "PATH": f"{self.bin}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
    }

  def command(self, script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"scripts.launch.{script}", *arguments]

  def launch(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 60, "cwd": self.checkout}
    return subprocess.run(self.command(script, *arguments), env=self.environment | environment, **options)

  def dry(self, script: str, *arguments: str) -> list[str]:
    """The lines that a dry run prints, with none of the tools on PATH."""
    done = self.launch(script, *arguments, "--dry-run", PATH="/nothing")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()

  def bash(self, script: str, **environment: str) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "text": True, "env": self.environment | environment, "cwd": self.checkout}
    return subprocess.run(["bash", "-e"], input=script, **options)

  def calls(self) -> list[list[str]]:
    """The calls since the last time."""
    log = self.folder / "calls.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]

  def trained(self) -> dict[str, list[str]]:
    """The arguments of every training by host and number: "0-1" is the first on host 0."""
    found = sorted((self.folder / "trained").iterdir())
    return {path.name: path.read_text().split("\0")[:-1] for path in found}

  def same_as_printed(self, script: str, *arguments: str) -> bool:
    """Whether the tools get the same calls from a shell that runs what a dry run prints as from the script."""
    printed = "\n".join(self.dry(script, *arguments))
    assert self.launch(script, *arguments).returncode == 0
    called = self.calls()
    assert self.bash(printed).returncode == 0
    return called == self.calls() and called != []


def remote(line: str) -> list[str]:
  """The command that a printed gcloud line runs on the hosts, as their shell splits it."""
  (command,) = [part for part in shlex.split(line, comments=True) if part.startswith("--command=")]
  return shlex.split(command.removeprefix("--command="))


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  if any((tmp_path / "hosts").glob("*/moe")):  # nothing that a test started there outlives it
    cloud.launch("tpu", "delete", "t", "--zone=z", "--yes")
