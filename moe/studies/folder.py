"""The folder of a study: its runs, the result of each, and which of them a worker may start."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TextIO

from moe.config import UserError
from moe.files import local_path, write_whole
from moe.parallel.lock import LockedError, lock
from moe.studies.study import Job, Result


class StudyError(UserError):
  """The folder holds another study, or the study cannot continue."""


class Folder:
  """`runs/NAME` is the workdir of a job, `results/NAME.json` its result, `failed/NAME.txt` why its last attempt failed.

  Attributes:
    root: of the study.
  """

  def __init__(self, path: str | pathlib.Path):
    self.root = local_path("--workdir", path)

  def workdir(self, name: str) -> pathlib.Path:
    """The workdir of a job."""
    return self.root / "runs" / name

  def log(self, name: str) -> TextIO:
    """The file of what a job prints, over all its attempts."""
    path = self.root / "logs" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")

  def ready(self, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that can be started, or are being run; in order. Others start from these, or from one that failed."""
    done = {job.name for job in jobs if self.result(job) is not None}
    found = (job for job in jobs if job.name not in done and not self.failed(job))
    return [job for job in found if not job.source or job.source in done]

  def result(self, job: Job) -> Result | None:
    """The result of a job; None if it has not finished.

    Raises:
      StudyError: it was made with another config.
    """
    path = self._result(job.name)
    if not path.exists():
      return None
    result = Result(**json.loads(path.read_text()))
    if result.digest != job.digest:
      advice = f"choose another --workdir, or return to commit {result.commit}"
      raise StudyError(f"{path} is the result of another version of the study: {advice}")
    return result

  def results(self, jobs: Sequence[Job]) -> list[Result]:
    """Those of the finished jobs."""
    return [result for job in jobs if (result := self.result(job)) is not None]

  def failed(self, job: Job) -> str:
    """Why the last attempt failed; empty if it has not, or is finished."""
    path = self._failed(job.name)
    return path.read_text().strip() if path.exists() else ""

  def write_result(self, result: Result) -> None:
    """Marks a job as finished."""
    path = self._result(result.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    self._failed(result.name).unlink(missing_ok=True)

  def write_failed(self, job: Job, why: str) -> None:
    """Remembers why an attempt failed."""
    path = self._failed(job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, why + "\n")

  def forget_failures(self, jobs: Sequence[Job]) -> None:
    """Before a new attempt at all of them."""
    for job in jobs:
      self._failed(job.name).unlink(missing_ok=True)

  @contextlib.contextmanager
  def taken(self, job: Job) -> Iterator[bool]:
    """Takes a job within the block, so that no other worker has it; False if another has it."""
    path = self.root / "locks" / (job.name.replace("/", "_") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(lock(path))
      except LockedError:
        yield False
        return
      yield True

  def _result(self, name: str) -> pathlib.Path:
    return self.root / "results" / f"{name}.json"

  def _failed(self, name: str) -> pathlib.Path:
    return self.root / "failed" / f"{name}.txt"
