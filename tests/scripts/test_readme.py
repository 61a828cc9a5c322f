"""The launch commands that the README shows."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHOWN = re.findall(r"^    python (-m scripts\.launch\.(?:\\\n|.)*)$", (ROOT / "README.md").read_text(), flags=re.M)


def test_it_shows_every_verb_from_create_to_delete():
  assert [shown.split()[2] for shown in SHOWN if "launch.tpu" in shown] == [
    *("create", "install", "start", "log", "delete"),
    "resume",
  ]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: " ".join(shown.split()[1:3]))
def test_it_runs_as_it_is_shown(shown):
  arguments = shlex.split(shown.replace("\\\n", " ").replace("$NFS", "10.0.0.2:/moe"))
  command = [sys.executable, *arguments, "--dry-run"]
  done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout
