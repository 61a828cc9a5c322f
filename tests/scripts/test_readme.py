"""The launch commands that the README shows."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHOWN = re.findall(r"^    python (scripts/launch_(?:\\\n|.)*)$", (ROOT / "README.md").read_text(), flags=re.M)


def test_it_shows_every_verb_from_nothing_to_nothing():
  assert [shown.split()[1] for shown in SHOWN if "launch_tpu" in shown] == [
    *("create", "install", "start", "log", "delete"),
    "resume",
  ]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: " ".join(shown.split()[:2]))
def test_it_can_be_given_as_it_stands(shown):
  arguments = shlex.split(shown.replace("\\\n", " ").replace("$NFS", "10.0.0.2:/moe"))
  command = [sys.executable, *arguments, "--dry-run"]
  done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout
