r"""Trains on the GPUs of several Slurm nodes, with this checkout and this Python, which all nodes must be able to read.

  python -m scripts.launch.slurm start NAME --nodes 2 --gpus-per-node 8 \
    --config configs/quickstart.py --workdir runs/a
  python -m scripts.launch.slurm log NAME --workdir runs/a
  python -m scripts.launch.slurm delete NAME

Settings of the site come from the environment of sbatch: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT,
SBATCH_CPUS_PER_GPU and so on. There is no `resume`: a job stopped by its time limit, a preemption or a broken node is
requeued automatically. A second job of the same name waits until the first has ended.
"""

import argparse
import getpass
import os
import shlex
import sys

from moe.commands import Parser, run_script
from moe.config import require
from moe.files import local_path
from scripts.launch.shared import (
  ROOT,
  Shell,
  add_dry_run,
  add_train_options,
  add_yes,
  confirm,
  parse_options,
  train_command,
)

# The batch script, with {command} to fill in. Its options are arguments of sbatch, as #SBATCH lines have quoting rules
# of their own.
_SCRIPT = """#!/bin/bash
# One process per GPU, as JAX expects; it finds the coordinator and the ranks in Slurm's environment.
# When a process has ended, the others have two minutes to save too, or to notice that it is lost.
srun --wait=120 --label {command}
code=$?
# 143: asked to stop, and saved. A cancelled job is not running any more, and must not be requeued.
if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
_NOTICE_S = 300  # before the time limit, for the current step and a checkpoint


def _start(options: argparse.Namespace, shell: Shell) -> None:
  """Submits the job.

  Raises:
    ConfigError: there is no such config, or the job has no node or GPU.
    LaunchError: sbatch refuses the job.
  """
  for name in ("nodes", "gpus_per_node"):
    require(getattr(options, name) >= 1, f"--{name.replace('_', '-')}", getattr(options, name), "expected at least 1")
  command = train_command(options, sys.executable)
  log = _log(options.workdir)
  shell.run(["mkdir", "-p", os.path.dirname(log)])
  job = [
    f"--job-name={options.name}",
    "--dependency=singleton",
    f"--nodes={options.nodes}",
    f"--ntasks-per-node={options.gpus_per_node}",
    f"--gpus-per-node={options.gpus_per_node}",
    f"--chdir={ROOT}",
    f"--output={log.replace('%', '%%')}",
    "--open-mode=append",
    "--requeue",
    f"--signal=TERM@{_NOTICE_S}",
  ]
  shell.run(["sbatch", *job], _SCRIPT.replace("{command}", shlex.join(command)))


def _log(workdir: str) -> str:
  """The log file: next to the run's folder, which contains only what the run writes."""
  return f"{workdir}.log"


def main(arguments: list[str] | None = None) -> None:
  options = parse_options(_parser(), arguments)
  shell = Shell(options.dry_run)
  if "workdir" in options:
    options.workdir = str(local_path("--workdir", options.workdir))
  match options.verb:
    case "start":
      _start(options, shell)
    case "log":
      shell.run(["tail", "-n", "100", "-F", _log(options.workdir)])
    case "delete":
      confirm(f"Cancel the jobs named {options.name}? The workdir is kept.", options.yes, shell)
      shell.run(["scancel", f"--user={getpass.getuser()}", f"--name={options.name}"])


def _parser() -> argparse.ArgumentParser:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("start", "log", "delete"):
    its = verbs.add_parser(verb)
    its.add_argument("name", help="of the job")
    add_dry_run(its)
    if verb == "start":
      its.add_argument("--nodes", type=int, required=True)
      its.add_argument("--gpus-per-node", type=int, required=True)
      add_train_options(its)
    if verb == "log":
      its.add_argument("--workdir", required=True, help="the one given to start")
    if verb == "delete":
      add_yes(its)
  return parser


if __name__ == "__main__":
  run_script(main)
