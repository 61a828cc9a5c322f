"""Checks a machine: `python -m moe.check --results results/NAME.json`, with `--quick` on a CPU.

Kernels, routers, the ways that tokens travel and training steps give the numbers of the float32 CPU; a tiny run
resumes; layers and train steps are timed next to dense ones and next to the device's own ceilings. It needs JAX, Flax,
Optax, Orbax, ml_collections, NumPy and SciPy. A row that says FAILED does not stop the others; the exit code is then 1.
"""

import os
import sys

from absl import flags

from moe import commands
from moe.config import require

PARTS = ("kernels", "travel", "routers", "training", "speed")

_RESULTS = flags.DEFINE_string("results", None, "JSON file to create; complete after every row.")
_QUICK = flags.DEFINE_bool("quick", False, "Small shapes: whether everything runs, in about a minute on two cores.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), f"Which parts, of {', '.join(PARTS)}.")


def main() -> None:
  """Runs the parts.

  Raises:
    ConfigError: an argument is wrong, or JAX finds no device.
  """
  parts = _PARTS.value
  for part in parts:
    require(part in PARTS, "--parts", part, f"expected some of {', '.join(PARTS)}")
  results = None if _RESULTS.value is None else commands.new_path("--results", _RESULTS.value)
  from moe.checks.conduct import check_machine

  if not check_machine(parts, results, quick=_QUICK.value):
    sys.exit(1)


def _with_cpu() -> None:
  """Lets JAX use the CPU, the reference, where the environment names other platforms alone. Call it before JAX."""
  named = os.environ.get("JAX_PLATFORMS", "")
  if named and "cpu" not in named.split(","):
    os.environ["JAX_PLATFORMS"] = f"{named},cpu"


if __name__ == "__main__":
  _with_cpu()
  commands.run(main)
