r"""Trains on GPUs of several nodes of a Slurm cluster, from this checkout and this Python, which all nodes must see.

  python scripts/launch/slurm.py start NAME --nodes 2 --gpus-per-node 8 \
    --config configs/quickstart.py --workdir runs/a
  python scripts/launch/slurm.py log NAME --workdir runs/a
  python scripts/launch/slurm.py delete NAME

The site's own settings are those of sbatch's environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT,
SBATCH_CPUS_PER_GPU and so on. There is no resume: a job that its time limit, a preemption or a broken node stops goes
back to the queue by itself. A second job of the same name waits until the first has ended.
"""

import argparse
import getpass
import os
import shlex
import sys

from launching import ROOT, Shell, add_dry_run, add_train_options, add_yes, confirm, main, parse, train_command

from moe.config import require

# The batch script, with {command} to fill in. Its options are sbatch's arguments: #SBATCH lines have a quoting of
# their own.
_SCRIPT = """#!/bin/bash
# One process a GPU, as JAX wants it; JAX finds coordinator and ranks in Slurm's environment.
# The others of a process that has ended have two minutes: to save too, or to see that it is gone.
srun --wait=120 --label {command}
code=$?
# 143: asked to stop, and saved. A job that was cancelled is not running any more, and stays so.
if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
_NOTICE_S = 300  # before the time limit, for the step at hand and a checkpoint


def start(options: argparse.Namespace, shell: Shell) -> None:
  """Queues the job.

  Raises:
    ConfigError: no such config, or less than one node or GPU. LaunchError: sbatch refuses it.
  """
  for name in ("nodes", "gpus_per_node"):
    require(getattr(options, name) >= 1, f"--{name.replace('_', '-')}", getattr(options, name), "must be at least 1")
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
  """Beside the run's folder, which holds nothing but the run."""
  return f"{workdir}.log"


def launch(arguments: list[str] | None = None) -> None:
  options = parse(_parser(), arguments)
  shell = Shell(options.dry_run)
  if "workdir" in options:
    options.workdir = os.path.abspath(options.workdir)
  match options.verb:
    case "start":
      start(options, shell)
    case "log":
      shell.run(["tail", "-n", "100", "-F", _log(options.workdir)])
    case "delete":
      confirm(f"Cancel the jobs named {options.name}? The workdir stays.", options.yes, shell)
      shell.run(["scancel", f"--user={getpass.getuser()}", f"--name={options.name}"])


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("start", "log", "delete"):
    its = verbs.add_parser(verb, allow_abbrev=False)
    its.add_argument("name", help="of the job")
    add_dry_run(its)
    if verb == "start":
      its.add_argument("--nodes", type=int, required=True)
      its.add_argument("--gpus-per-node", type=int, required=True)
      add_train_options(its)
    if verb == "log":
      its.add_argument("--workdir", required=True, help="that of start")
    if verb == "delete":
      add_yes(its)
  return parser


if __name__ == "__main__":
  main(launch)
