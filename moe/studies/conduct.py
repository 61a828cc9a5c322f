"""Conducts a study: which of its runs are known, and what is missing of them."""

import pathlib
from collections.abc import Sequence

from moe.config import differences
from moe.studies.folder import Folder, Read
from moe.studies.reporting.results_file import read_analysis, results_of
from moe.studies.runner import hours_left, run_missing
from moe.studies.study import Inputs, Job, Result, Study


def known_jobs(study: Study, budget: str, inputs: Inputs, folder: Folder) -> list[Job]:
  """The study's jobs, as far as the results in the folder name them."""
  jobs: list[Job] = []
  while len(more := study.jobs(budget, inputs, folder.results(jobs))) > len(jobs):
    jobs = more
  return jobs


def with_sources(study: Study, budget: str, inputs: Inputs, folder: Folder, jobs: Sequence[Job]) -> list[Job]:
  """The known jobs when runs that missing ones start from, or measure, are to be there.

  Of a run from elsewhere there is a result alone, which is no use to these: it is taken back, to be run here.
  """
  for job in reversed(jobs):  # a source stands before what starts from it
    missing = job.source and not folder.is_finished(job.name)
    if missing and folder.is_finished(job.source) and not folder.has_run(job.source):
      folder.take_back(job.source)
  return known_jobs(study, budget, inputs, folder)


def published_results(study: Study, budget: str, source: pathlib.Path, read: Read) -> dict[str, Result]:
  """What results files say of runs that have read the same, by name, of all studies that share the study's runs.

  Args:
    study: the study.
    budget: its budget.
    source: a folder of results files, of any studies and budgets.
    read: what the study reads; older results files do not say what data sets, which then count as the same.
  """
  found: dict[str, Result] = {}
  for path in sorted(source.glob("*.json")):
    other, analysis = read_analysis(path)
    theirs, ours = analysis.get("data_dir"), read.get("data_dir")
    same = analysis.get("text", {}) == read.get("text", {}) and (not theirs or not ours or theirs == ours)
    if same and (other.runs, analysis["budget"]) == (study.runs, budget):
      found |= {result.name: result for result in results_of(analysis)}
  return found


def add_published(study: Study, budget: str, inputs: Inputs, folder: Folder, published: dict[str, Result]) -> list[Job]:
  """Counts as finished the jobs that are among published results, with the same config, and removes them from these.

  So each is taken once, when its job is first known, and not again after `with_sources` has taken it back.

  Returns:
    The known jobs.
  """
  jobs = known_jobs(study, budget, inputs, folder)
  while offered := [job for job in jobs if job.name in published]:
    for job in offered:
      result = published.pop(job.name)
      if not folder.is_finished(job.name) and not differences(result.config, job.compared):
        folder.add(result)
    jobs = known_jobs(study, budget, inputs, folder)
  return jobs


def run_study(
  study: Study,
  budget: str,
  inputs: Inputs,
  folder: Folder,
  jobs: list[Job],
  processes: int,
  commit: str,
  published: dict[str, Result] | None = None,
) -> list[Job]:
  """Runs the known jobs, and all others that only their results name; those that had failed are tried again.

  Args:
    study: the study.
    budget: its budget.
    inputs: what its runs read.
    folder: of its runs.
    jobs: the known ones.
    processes: that run jobs at the same time.
    commit: kept with each result.
    published: of these, what is left of `add_published`: jobs that become known later may be among them.

  Returns:
    The jobs, each of which is finished, has failed, or starts from one that has.

  Raises:
    StudyError: as `run_missing`.
  """
  folder.forget_failures(jobs)
  while folder.ready(jobs):
    run_missing(folder, jobs, processes, commit)
    jobs = add_published(study, budget, inputs, folder, published or {})
    jobs = with_sources(study, budget, inputs, folder, jobs)
    folder.claim(study.runs, budget)
  return jobs


def progress_of(jobs: Sequence[Job], results: Sequence[Result], processes: int) -> str:
  """How many of the known runs are finished, and the time that the others will take, where it can be known."""
  said, hours = f"{len(results)} of {len(jobs)} runs are finished", hours_left(jobs, results)
  if hours is None:
    return said
  together = f", {hours / processes:.1f} with --jobs={processes}" if processes > 1 else ""
  return f"{said}; the others take about {hours:.1f} hours one after the other{together}"
