"""Everything in tests/mesh, in processes of their own: JAX fixes the number of CPU devices when it starts."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.mesh.conftest import EIGHT_DEVICES

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests" / "mesh").glob("test_*.py")))
def test_on_eight_devices(name, pytestconfig):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": EIGHT_DEVICES}
  command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"tests/mesh/{name}"]
  command += ["--slow"] if pytestconfig.getoption("--slow") else []
  run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stdout + run.stderr
