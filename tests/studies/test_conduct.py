import pytest

from moe.studies import worker
from moe.studies.conduct import known_jobs, progress_of, run_study
from moe.studies.folder import Folder
from moe.studies.reporting.results_file import analysis_of, lines_of
from moe.studies.runner import hours_left
from moe.studies.study import Inputs, Job, Study

INPUTS = Inputs("*.txt", "")


class Tiny(Study):
  """One run, whose result names three others; `bad` fails."""

  name = "tiny"
  claim, source, budgets = "It runs.", "nowhere", ("smoke",)

  def jobs(self, budget, inputs, results):
    return [
      tiny("first", 3.0),
      *([tiny("bad", 1.0), tiny("after", 1.0, source="bad"), tiny("last", 2.0)] if results else []),
    ]

  def check_inputs(self, inputs, jobs):
    pass

  def analyse(self, budget, results):
    return {"steps": {result.name: result.step for result in results}}

  def lines(self, analysis):
    return [f"{name}: {step}" for name, step in analysis["steps"].items()]


def tiny(name, weight, source=""):
  return Job(name, {"data": {"source": {"name": "text"}}}, source=source, weight=weight)


@pytest.fixture
def here(monkeypatch):
  """Runs are made up, in this process."""

  def run(folder, job):
    if job.name == "bad":
      raise ValueError("no luck")
    return {"step": 10, "validation": {}, "scores": {}}

  def run_missing(folder, jobs, processes, commit):
    worker.work(str(folder.root), jobs, commit, None)

  monkeypatch.setattr(worker, "_run", run)
  monkeypatch.setattr("moe.studies.conduct.run_missing", run_missing)


def test_runs_that_results_name_are_made_too_and_the_analysis_names_those_that_failed(tmp_path, here):
  folder = Folder(tmp_path)
  jobs = known_jobs(Tiny(), "smoke", INPUTS, folder)
  assert [job.name for job in jobs] == ["first"]
  jobs = run_study(Tiny(), "smoke", INPUTS, folder, jobs, 1, "abc")
  analysis = analysis_of(Tiny(), "smoke", jobs, folder)
  assert analysis["steps"] == {"first": 10, "last": 10}
  assert (analysis["finished"], analysis["runs"]) == (2, 4)
  assert analysis["failed"] == {"bad": "ValueError: no luck", "after": "it starts from bad"}
  failed = ["bad failed: ValueError: no luck", "after failed: it starts from bad"]
  assert lines_of(Tiny(), analysis) == ["first: 10", "last: 10", "", *failed]


def test_the_time_left_is_that_of_the_finished_runs_by_weight(tmp_path, here, monkeypatch):
  jobs, folder = [tiny("first", 3.0), tiny("last", 2.0)], Folder(tmp_path)
  assert hours_left(jobs, []) is None
  clock = iter([0.0, 5400.0])
  monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
  worker.work(str(tmp_path), jobs[:1], "", None)
  assert hours_left(jobs, folder.results(jobs)) == pytest.approx(1.0)
  assert progress_of(jobs, [], 2) == "0 of 2 runs are finished"
  said = "1 of 2 runs are finished; the others take about 1.0 hours one after the other"
  assert progress_of(jobs, folder.results(jobs), 1) == said
  assert progress_of(jobs, folder.results(jobs), 2) == f"{said}, 0.5 with --jobs=2"
