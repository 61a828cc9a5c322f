"""Runs the quickstart as a user would and records what it reached.

python -m scripts.benchmarks.quickstart --workdir runs/quickstart --results results/quickstart.json
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np

from moe.commands import Parser, run_script
from moe.evaluation.summary import gzip_bits_per_byte
from moe.models.count import count_parameters
from moe.training.metrics_file import read_metrics
from moe.training.workdir import Workdir
from scripts.benchmarks.arguments import absent_path

COMMAND = ["-m", "moe.train", "--config", "configs/quickstart.py"]


def main() -> None:
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=absent_path, required=True, help="new folder for the run")
  parser.add_argument("--results", type=absent_path, required=True, help="new JSON file")
  parser.add_argument("--figure", type=pathlib.Path, help="copy of the loss figure")
  arguments = parser.parse_args()

  start = time.perf_counter()
  subprocess.run([sys.executable, *COMMAND, "--workdir", str(arguments.workdir)], check=True)
  seconds = time.perf_counter() - start

  workdir = Workdir(arguments.workdir)
  config = workdir.load_config()
  records = read_metrics(workdir.metrics)
  train = [record for record in records if record["kind"] == "train"]
  results = {
    "minutes": seconds / 60,
    "steps": config.train.steps,
    "parameters": count_parameters(config.model, experts_per_token=1.0).total / 1e6,
    "bits_per_byte": records[-1]["bits_per_byte"],
    "gzip_bits_per_byte": gzip_bits_per_byte(config.data),
    "input_wait": float(np.mean([record["input_wait"] for record in train])),
    "tokens_per_second": float(np.median([record["tokens_per_second"] for record in train])),
    "validation": [[r["step"], r["bits_per_byte"]] for r in records if r["kind"] == "validation"],
    "train": [[r["step"], r["bits_per_byte"]] for r in train],
    "jax": jax.__version__,
    "python": sys.version.split()[0],
  }
  arguments.results.parent.mkdir(parents=True, exist_ok=True)
  arguments.results.write_text(json.dumps(results) + "\n")
  if arguments.figure:
    shutil.copy(workdir.figure, arguments.figure)


if __name__ == "__main__":
  run_script(main)
