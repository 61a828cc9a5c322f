"""Everything in tests/mesh, in processes of their own: JAX fixes the number of CPU devices when it starts."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.mesh.conftest import EIGHT_DEVICES

ROOT = pathlib.Path(__file__).parents[2]


# The long ones have a process each; the others share one, since it takes longer to start than most of them to run.
LONG = ("test_layers.py", "test_step.py", "test_runs.py")
SHORT = tuple(sorted({path.name for path in (ROOT / "tests" / "mesh").glob("test_*.py")} - set(LONG)))


@pytest.mark.parametrize("names", [*((name,) for name in LONG), SHORT], ids=[*LONG, "the others"])
def test_on_eight_devices(names, pytestconfig):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": EIGHT_DEVICES}
  command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
  command += [f"tests/mesh/{name}" for name in names]
  command += ["--slow"] if pytestconfig.getoption("--slow") else []
  run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stdout + run.stderr
