"""One process that runs jobs of a study, one after the other, so that they share imports and compiled programs."""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from absl import logging as absl_logging

from moe.config import UserError, first_line, require
from moe.parallel.programs import shared_programs
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job, Result

_PAUSE = 2.0  # seconds between looks for a job, while others hold what is left
# What Slurm and Cloud TPU say of a job of one process.
_ALONE = {"SLURM_STEP_NUM_TASKS": "1?", "TPU_WORKER_HOSTNAMES": "[^,]*"}


class Stopped(BaseException):
  """The worker was asked to stop, and its run has saved; not an error of the run."""


def work(root: str, jobs: Sequence[Job], commit: str, core: int | None) -> None:
  """Runs jobs until all are finished, have failed, or start from one that has, or the process that started it is gone.

  Args:
    root: of the study.
    jobs: all of the study, in order.
    commit: of the repository, to be kept with each result.
    core: of the processor, to which this process is bound; None for all.
  """
  if core is not None:
    os.sched_setaffinity(0, {core})
  absl_logging.set_verbosity(absl_logging.FATAL)  # as in every main: libraries log what nobody can act on
  from moe.parallel.platform import start_platform  # here, after the process has been bound to its core

  start_platform()
  folder, parent = Folder(root), multiprocessing.parent_process()
  with contextlib.suppress(Stopped), shared_programs():
    while (ready := folder.ready(jobs)) and (parent is None or parent.is_alive()):
      if not any(_try(folder, job, commit) for job in ready):
        time.sleep(_PAUSE)


def run_one(folder: Folder, job: Job, commit: str) -> bool:
  """Runs or resumes one job, which may have failed before, in this process; False if it was stopped before its end.

  Raises:
    ConfigError: the job that it starts from is not finished, or this is one of several processes of an engine's job.
    StudyError: another process has it, or it fails.
  """
  able = not job.source or folder.is_finished(job.source)
  require(able, "--only", job.name, f"expected {job.source}, which it starts from, to be finished")
  for name, alone in _ALONE.items():
    found = os.environ.get(name, "")
    require(bool(re.fullmatch(alone, found)), name, found, "expected one process, which makes a run of a study")
  folder.forget_failures([job])
  commit = commit or folder.sent(job).get("commit", "")
  try:
    if not _try(folder, job, commit):
      raise StudyError(f"{job.name} is being run by another process")
  except Stopped:
    return False
  if why := folder.failed(job):
    raise StudyError(f"{job.name} failed: {why}")
  return True


def _try(folder: Folder, job: Job, commit: str) -> bool:
  """Runs or resumes a job, unless another worker has it; an error is kept, and the other jobs continue."""
  with folder.taken(job) as mine:
    if not mine:
      return False
    if folder.is_finished(job.name) or folder.failed(job):
      return True  # by another worker, in the meantime
    start = time.monotonic() - _seconds_before(folder.workdir(job.name))
    with folder.log(job.name) as out, _printed_to(out):
      try:
        found = _measure(folder, job) if job.measure else _run(folder, job)
      except Exception as error:
        traceback.print_exc()
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        folder.write_failed(job, why)
        return True
    seconds = time.monotonic() - start
    folder.write_result(Result(job.name, dict(job.tags), job.compared, commit, seconds, **found))
    return True


def _run(folder: Folder, job: Job) -> dict[str, Any]:
  """Trains to the last step: the fields of the job's result.

  Raises:
    Stopped: by a signal.
  """
  from moe.evaluation.run import run_config
  from moe.studies.outcome import diverged_outcome, outcome
  from moe.training.experiment import load_config
  from moe.training.hooks import DivergedError
  from moe.training.init import inherit

  workdir, tree = folder.workdir(job.name), dict(job.config)
  if job.source:
    tree["init"] = {**(tree.get("init") or {}), "workdir": str(_start(folder, job))}
  try:
    config, summary = run_config(tree, workdir)
  except DivergedError:
    if not job.may_diverge:
      raise
    traceback.print_exc()
    more = diverged_outcome(load_config(inherit(tree, workdir)), workdir, job.blocks) if job.blocks else {}
    return {"step": 0, "validation": {"loss": math.inf}, "scores": {}, **more}
  if not summary.finished:
    raise Stopped
  path = workdir / "scores.json"
  scores = json.loads(path.read_text()) if path.exists() else {}
  more = outcome(config, workdir, job.blocks) if job.blocks else {}
  return {"step": summary.step, "validation": summary.validation, "scores": scores, **more}


def _start(folder: Folder, job: Job) -> pathlib.Path:
  """The workdir of the run that a job starts from: its source's, or what that is converted to."""
  from moe.convert.runs import grow_run, upcycle_run
  from moe.training.workdir import Workdir

  source, made = folder.workdir(job.source), folder.root / "converted" / job.name
  if job.conversion is None:
    return source
  if not Workdir(made).config.exists():  # it comes last: a kill may have left a part
    shutil.rmtree(made, ignore_errors=True)
    fields = job.conversion.fields.items()
    if job.conversion.verb == "grow":
      grow_run(source, "latest", made, fields)
    else:
      upcycle_run(source, "latest", made, fields, fresh_optimizer=True)
  return made


def _measure(folder: Folder, job: Job) -> dict[str, Any]:
  """Measures the finished run of the job's source, or makes the job's experiment: the fields of the job's result."""
  from moe.studies import Study

  study = Study.choices[job.measure]()
  measured = study.measure(folder.workdir(job.source), job.tags) if job.source else study.experiment(job.config)
  return {"step": 0, "validation": {}, "scores": {}, "measured": measured}


def _seconds_before(workdir: pathlib.Path) -> float:
  """About what earlier attempts took, by the clock of their records, which begins again with each of them."""
  from moe.training.metrics_file import read_metrics

  records = read_metrics(workdir / "metrics.jsonl")
  seconds = [0.0, *(record["seconds"] for record in records if record["kind"] == "train")]  # in the order of time
  return sum(after - before if after >= before else after for before, after in itertools.pairwise(seconds))


@contextlib.contextmanager
def _printed_to(out: TextIO) -> Iterator[None]:
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    yield
