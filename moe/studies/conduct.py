"""Conducts a study: which of its runs are known, and what is missing of them."""

from collections.abc import Sequence

from moe.studies.folder import Folder
from moe.studies.runner import hours_left, run_missing
from moe.studies.study import Inputs, Job, Result, Study


def known_jobs(study: Study, budget: str, inputs: Inputs, folder: Folder) -> list[Job]:
  """The study's jobs, as far as the results in the folder name them."""
  jobs: list[Job] = []
  while len(more := study.jobs(budget, inputs, folder.results(jobs))) > len(jobs):
    jobs = more
  return jobs


def run_study(
  study: Study, budget: str, inputs: Inputs, folder: Folder, jobs: list[Job], processes: int, commit: str
) -> list[Job]:
  """Runs the known jobs, and all others that only their results name; those that had failed are tried again.

  Returns:
    The jobs, each of which is finished, has failed, or starts from one that has.

  Raises:
    StudyError: as `run_missing`.
  """
  folder.forget_failures(jobs)
  while folder.ready(jobs):
    run_missing(folder, jobs, processes, commit)
    jobs = known_jobs(study, budget, inputs, folder)
  return jobs


def progress_of(jobs: Sequence[Job], results: Sequence[Result], processes: int) -> str:
  """How many of the known runs are finished, and the time that the others will take, where it can be known."""
  said, hours = f"{len(results)} of {len(jobs)} runs are finished", hours_left(jobs, results)
  if hours is None:
    return said
  together = f", {hours / processes:.1f} with --jobs={processes}" if processes > 1 else ""
  return f"{said}; the others take about {hours:.1f} hours one after the other{together}"
