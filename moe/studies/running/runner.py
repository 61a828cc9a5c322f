"""Runs what is missing of a study, in several processes, with one bar for the whole."""

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from moe.parallel.processors import processors
from moe.studies.running.folder import Folder, StudyError
from moe.studies.running.worker import work
from moe.studies.study import Job, Result

_LOOK = 1.0  # seconds between looks at what is finished


def run_missing(folder: Folder, jobs: Sequence[Job], processes: int, commit: str) -> None:
  """Returns when every job is finished or has failed. What is finished stays so: the same call resumes.

  Ctrl-C and SIGTERM end this process when its workers have saved and ended.

  Args:
    folder: of the study.
    jobs: in order.
    processes: that run jobs at the same time; several are bound to a core each.
    commit: kept with each result.

  Raises:
    StudyError: the workers were stopped.
  """
  missing = folder.pending(jobs)
  if not missing:
    return
  cores = processors() if processes > 1 else [None]
  context = multiprocessing.get_context("spawn")  # a fork of a process with JAX's threads may hang
  workers = [
    context.Process(target=work, args=(str(folder.root), jobs, commit, cores[i % len(cores)]), name=f"study-{i}")
    for i in range(min(processes, len(missing)))
  ]
  with _ended_by_sigterm():
    try:
      with _ignoring_ctrl_c():
        for worker in workers:
          worker.start()
      _follow(folder, jobs, missing, workers)
    finally:
      for worker in workers:
        if worker.is_alive():
          worker.terminate()  # it saves, and ends
      for worker in workers:
        if worker.pid is not None:
          worker.join()
  left = folder.pending(missing)
  broken = [worker.exitcode for worker in workers if worker.exitcode]
  if broken and left:
    raise StudyError(f"{len(left)} runs are left: a worker ended with exit code {broken[0]}; run the command again")


def hours_left(jobs: Sequence[Job], results: Sequence[Result]) -> float | None:
  """Of one run after the other, by the seconds of the finished jobs; None if there are none."""
  weights = {job.name: job.weight for job in jobs}
  done = sum(weights[result.name] for result in results)
  return sum(result.seconds for result in results) / done * (sum(weights.values()) - done) / 3600 if done else None


def _follow(
  folder: Folder, jobs: Sequence[Job], missing: Sequence[Job], workers: Sequence[multiprocessing.process.BaseProcess]
) -> None:
  """Shows what is done, by weight, and the time left until all workers have ended; in a log only when that changes."""
  total, live = sum(job.weight for job in missing), sys.stderr.isatty()
  with tqdm(total=total, bar_format="{percentage:3.0f}% of {desc}|{bar}| {elapsed}") as bar:
    done: set[str] = set()
    end: float | None = None
    while alive := sum(worker.is_alive() for worker in workers):
      new = [job for job in missing if job.name not in done and (folder.is_finished(job.name) or folder.failed(job))]
      for job in new:
        done.add(job.name)
        bar.update(job.weight)
        if why := folder.failed(job):
          bar.write(f"{job.name} failed: {why}")
      first = not bar.desc
      if new or first:
        possible = [job for job in jobs if not folder.failed(job)]
        hours = hours_left(possible, folder.results(possible))
        end = None if hours is None else time.monotonic() + 3600 * hours / alive
      if new or first or live:
        left = "?" if end is None else tqdm.format_interval(max(0.0, end - time.monotonic()))
        bar.set_description_str(f"{len(missing)} runs ({len(done)} done, {left} left)")
      time.sleep(_LOOK)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
  """SIGTERM raises `SystemExit`, as Ctrl-C raises `KeyboardInterrupt`: workers do not outlive this process."""
  before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
  """What is started inside ignores Ctrl-C, which a terminal sends to all processes; this one ends the others itself."""
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
