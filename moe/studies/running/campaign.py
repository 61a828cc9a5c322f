"""A study at one of its budgets: which of its runs are known, and what is missing of them."""

import pathlib
from collections.abc import Mapping

from moe.config import differences
from moe.studies.reporting.results_file import read_analysis, results_of
from moe.studies.running.folder import Folder, Read
from moe.studies.running.runner import hours_left, run_missing
from moe.studies.study import Inputs, Job, Result, Study


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


class Campaign:
  """A study at one of its budgets, in a folder. Results of its jobs may name further jobs.

  Attributes:
    study: the study.
    budget: its budget.
    inputs: what its runs read.
    folder: of its runs.
    jobs: those that are known, as far as the results in the folder name them; each after the one that it starts from.
  """

  def __init__(
    self, study: Study, budget: str, inputs: Inputs, folder: Folder, published: Mapping[str, Result] | None = None
  ):
    """Writes nothing.

    Args:
      study: the study.
      budget: its budget.
      inputs: what its runs read.
      folder: of its runs.
      published: results from elsewhere, by name. A job of the same config takes its own once, when it is first known,
        and then counts as finished; `Folder.claim` writes it.
    """
    self.study, self.budget, self.inputs, self.folder = study, budget, inputs, folder
    self.jobs: list[Job] = []
    self._published = dict(published or {})
    self.update()

  @property
  def results(self) -> list[Result]:
    """Those of the finished jobs."""
    return self.folder.results(self.jobs)

  def update(self) -> None:
    """Finds the jobs that results name by now, and takes what is published of them."""
    self._find_jobs()
    while offered := [job for job in self.jobs if job.name in self._published]:
      for job in offered:
        result = self._published.pop(job.name)
        if not self.folder.is_finished(job.name) and not differences(result.config, job.compared):
          self.folder.add(result)
      self._find_jobs()

  def take_back_sources(self) -> None:
    """Counts as missing what missing jobs start from, or measure, where there is a result without its run."""
    for job in reversed(self.jobs):  # a source stands before what starts from it
      missing = job.source and not self.folder.is_finished(job.name)
      if missing and self.folder.is_finished(job.source) and not self.folder.has_run(job.source):
        self.folder.take_back(job.source)
    self._find_jobs()

  def run(self, processes: int, commit: str) -> None:
    """Runs all that is missing until every job is finished, has failed, or starts from one that has failed.

    Those that had failed before are tried again.

    Args:
      processes: that run jobs at the same time.
      commit: kept with each result.

    Raises:
      StudyError: as `run_missing`.
    """
    self.folder.forget_failures(self.jobs)
    while self.folder.ready(self.jobs):
      run_missing(self.folder, self.jobs, processes, commit)
      self.update()
      self.take_back_sources()
      self.folder.claim(self.study.runs, self.budget)

  def progress(self, processes: int) -> str:
    """How many of the known runs are finished, and the time that the others will take, where it can be known."""
    done = self.results
    said, hours = f"{len(done)} of {len(self.jobs)} runs are finished", hours_left(self.jobs, done)
    if hours is None:
      return said
    together = f", {hours / processes:.1f} with --jobs={processes}" if processes > 1 else ""
    return f"{said}; the others take about {hours:.1f} hours one after the other{together}"

  def _find_jobs(self) -> None:
    known = self.study.jobs(self.budget, self.inputs, [])
    while len(more := self.study.jobs(self.budget, self.inputs, self.folder.results(known))) > len(known):
      known = more
    self.jobs = known
