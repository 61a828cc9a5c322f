"""Sends the runs of a study to Slurm or to XPK, each as one job of that engine, by the repository's launch scripts."""

import hashlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from moe.config import ConfigError, require
from moe.studies.repository import REPOSITORY
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job

LOCAL, ENGINES = "local", ("slurm", "xpk")


def parse_runner(text: str) -> tuple[str, list[str]]:
  """The parts of `--runner`: where runs are made, and arguments of its launch script.

  Raises:
    ConfigError: it is none of ours, or cannot be split into words.
  """
  try:
    runner, *arguments = shlex.split(text) or [""]
  except ValueError as error:
    raise ConfigError("--runner", text, f"expected words as in a shell ({error})") from None
  wanted = f"expected {LOCAL}, or {' or '.join(ENGINES)} and arguments of its launch script"
  require(runner in ENGINES or (runner == LOCAL and not arguments), "--runner", text, wanted)
  script = REPOSITORY / "scripts" / "launch"
  require(runner == LOCAL or script.is_dir(), "--runner", text, f"expected the launch scripts in {script}")
  return runner, arguments


def send(
  folder: Folder,
  jobs: Sequence[Job],
  engine: str,
  arguments: Sequence[str],
  command: Sequence[str],
  commit: str,
  *,
  dry: bool = False,
) -> None:
  """Sends the jobs that can be started and were not sent before; those that had failed are sent again.

  A job counts as sent until it has a result or has failed, which its own process notes in the folder. One that the
  engine has lost, or was told to cancel, is sent again once its file in the folder's `sent` is deleted.

  Args:
    folder: of the study, on a disk that the engine's machines share.
    jobs: in order.
    engine: "slurm" or "xpk".
    arguments: of its launch script.
    command: the arguments of `moe.study` that say which study it is; `--only` is added.
    commit: of the repository, kept with what is sent, which may run outside of one.
    dry: print the engine's commands in place of running them.

  Raises:
    StudyError: the launch script failed for some of them, and has said why; the others are sent.
  """
  if not dry:
    folder.forget_failures(jobs)
  missing = folder.missing(jobs)
  ready = folder.ready(jobs)
  unsent = [job for job in ready if not folder.sent(job)]
  sys.stdout.flush()  # the launch script prints too
  refused = []
  for job in unsent:
    name = name_in_engine(folder, job, time.time_ns())
    options = [name, "--nodes=1", "--gpus-per-node=1"] if engine == "slurm" else [f"--name={name}"]
    options += [*arguments, f"--workdir={folder.workdir(job.name)}", *(["--dry-run"] if dry else [])]
    launch = [sys.executable, "-m", f"scripts.launch.{engine}", "start", *options]
    sent = subprocess.run([*launch, "--", "moe.study", *command, f"--only={job.name}"], cwd=REPOSITORY, check=False)
    if sent.returncode:
      refused.append(job.name)
    elif not dry:
      folder.write_sent(job, {"engine": engine, "name": name, "commit": commit})
      print(f"{job.name} is {name} in {engine}", flush=True)
  if refused:
    sent_now = f"{len(unsent) - len(refused)} of {len(unsent)} runs were sent"
    raise StudyError(f"{sent_now}: scripts.launch.{engine} failed for {', '.join(refused)}")
  print(
    f"{len(unsent)} runs {'would be' if dry else 'were'} sent to {engine}; {len(ready) - len(unsent)} were sent before,"
    f" and {len(missing) - len(ready)} wait for the run that they start from: the same command sends them then"
  )


def name_in_engine(folder: Folder, job: Job, attempt: int) -> str:
  """At most 39 of the characters that Kubernetes allows: a part to read, and one that differs between folders.

  It differs between attempts too: XPK keeps a job that has failed, and makes no other of its name.
  """
  words = re.sub("[^a-z0-9]+", "-", job.name.lower())[:25].strip("-")
  return f"moe-{words}-{hashlib.sha256(f'{folder.root}/{job.name}/{attempt}'.encode()).hexdigest()[:8]}"
