"""Two hosts score a task as one does, and one of them writes."""

import json
import os
import subprocess
import sys

import pytest

from tests.compiler import quick_flags
from tests.parallel.processes import free_port


def predictions(workdir, hosts, devices):
  """The lines of the last predictions of a run of four steps, after a check of what else is written."""
  port = str(free_port())
  settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_flags(devices)}
  environment = os.environ | settings
  command = [sys.executable, "-m", "tests.evaluation.scoring.hosts", str(workdir)]
  started = [subprocess.Popen([*command, str(host), str(hosts), port], env=environment) for host in range(hosts)]
  try:
    assert [process.wait(timeout=300) for process in started] == [0] * hosts
  finally:
    for process in started:
      process.kill()
  step = json.loads((workdir / "scores.json").read_text())["held_out"]["step"]
  path = workdir / "predictions" / f"step-{step}-animals-validation.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_hosts_answer_as_one(tmp_path):
  one = predictions(tmp_path / "one", 1, 1)
  two = predictions(tmp_path / "two", 2, 2)
  for found, expected in zip(two, one, strict=True):
    assert found["options"] == pytest.approx(expected["options"], rel=1e-4)
  assert not list((tmp_path / "two" / "predictions").glob("*-2.jsonl"))
