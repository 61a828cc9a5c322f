"""`python -m moe.check` as it is run: with the packages it names, and no others of the project's."""

import json
import subprocess
import sys

OTHERS = (
  "tensorflow",
  "tensorflow_datasets",
  "seqio",
  "clu",
  "tensorboard",
  "sklearn",
  "jinja2",
  "matplotlib",
  "sentencepiece",
)
PROGRAM = f"""
import sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {OTHERS}:
      raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
import runpy
runpy.run_module("moe.check", run_name="__main__", alter_sys=True)
"""


def check(*arguments):
  command = [sys.executable, "-c", PROGRAM, *arguments]
  return subprocess.run(command, capture_output=True, text=True)


def test_it_needs_few_packages(tmp_path):
  path = tmp_path / "results.json"
  done = check("--quick", "--parts=kernels", f"--results={path}")
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads(path.read_text())
  assert found["complete"] and found["settings"]["quick"] and found["settings"]["platform"] == "cpu"
  assert len(found["rows"]) == 8 and all(row["ok"] for row in found["rows"])
  assert "8 rows in" in done.stdout and "all ok" in done.stdout


def test_wrong_arguments_are_one_line(tmp_path):
  (tmp_path / "there.json").touch()
  for argument, said in (
    ("--parts=routers,all", "error: --parts = 'all': expected some of kernels, travel, routers, training, speed\n"),
    (
      f"--results={tmp_path}/there.json",
      f"error: --results = '{tmp_path}/there.json': expected a path that does not exist\n",
    ),
  ):
    done = check(argument)
    assert (done.returncode, done.stderr) == (2, said)
