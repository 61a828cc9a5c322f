"""Every config of `configs/pretrain` fits the slice that it is meant for, according to the TPU compiler."""

import pathlib
import subprocess
import sys

import pytest

from configs.pretrain.base import SLICES
from tests.planning.test_plan import environment, needs_compiler

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = [path.stem for path in sorted((ROOT / "configs" / "pretrain").glob("*.py")) if path.stem != "base"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_compiles_and_fits(name):
  (topology,) = (slice_ for size, slice_ in SLICES.items() if name.endswith(size.replace(".", "_")))
  command = [sys.executable, "-m", "moe.plan", "--config", f"configs/pretrain/{name}.py", "--topology", topology]
  done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr
  assert f"on {topology}" in done.stdout
