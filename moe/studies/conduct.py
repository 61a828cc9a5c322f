"""Conducts a study: from its jobs and the results in its folder to the analysis."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

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


def analysis_of(study: Study, budget: str, jobs: Sequence[Job], folder: Folder) -> dict[str, Any]:
  """The content of a study's results file: what it says, all that it says it from, and why runs have failed."""
  results, failed = folder.results(jobs), {}
  for job in jobs:  # each after the one that it starts from
    if why := folder.failed(job) or (f"it starts from {job.source}" if job.source in failed else ""):
      failed[job.name] = why
  return {
    "study": study.name,
    "budget": budget,
    "claim": study.claim,
    "source": study.source,
    "finished": len(results),
    "runs": len(jobs),
    "failed": failed,
    "commits": sorted({result.commit for result in results}),
    **study.analyse(budget, results),
    "results": [dataclasses.asdict(result) for result in results],
  }


def lines_of(study: Study, analysis: Mapping[str, Any]) -> list[str]:
  """An analysis in Markdown, with the runs that it lacks because they have failed."""
  failed = [f"{name} failed: {why}" for name, why in analysis["failed"].items()]
  return [*study.lines(analysis), *([""] if failed else []), *failed]


def progress_of(jobs: Sequence[Job], results: Sequence[Result], processes: int) -> str:
  """How many of the known runs are finished, and the time that the others will take, where it can be known."""
  said, hours = f"{len(results)} of {len(jobs)} runs are finished", hours_left(jobs, results)
  if hours is None:
    return said
  together = f", {hours / processes:.1f} with --jobs={processes}" if processes > 1 else ""
  return f"{said}; the others take about {hours:.1f} hours one after the other{together}"


def without_nan(values: Any) -> Any:
  """A tree of JSON with null for every number that JSON cannot hold."""
  if isinstance(values, Mapping):
    return {name: without_nan(value) for name, value in values.items()}
  if isinstance(values, list | tuple):
    return [without_nan(value) for value in values]
  return None if isinstance(values, float) and not math.isfinite(values) else values
