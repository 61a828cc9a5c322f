import json
import math

import pytest

from moe.studies.reporting.results_file import analysis_of, file_text, lines_of, results_of
from moe.studies.running import worker
from moe.studies.running.campaign import Campaign, published_results
from moe.studies.running.folder import Folder
from moe.studies.running.runner import hours_left
from moe.studies.study import Inputs, Job, Result, Study
from tests.studies.simulated import simulated_analysis, simulated_job

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

  def check_inputs(self, budget, inputs):
    pass

  def analyse(self, budget, results):
    return {"steps": {result.name: result.step for result in results}}

  def lines(self, analysis):
    return [f"{name}: {step}" for name, step in analysis["steps"].items()]


def tiny(name, weight, source=""):
  return Job(name, {"data": {"source": {"name": "text"}}}, source=source, weight=weight)


@pytest.fixture
def made_up(here, monkeypatch):
  """Runs are made up, in this process."""

  def run(folder, job):
    if job.name == "bad":
      raise ValueError("no luck")
    return {"step": 10, "validation": {}, "scores": {}}

  monkeypatch.setattr(worker, "_run", run)


def test_runs_that_results_name_are_made_too_and_the_analysis_names_those_that_failed(tmp_path, made_up):
  campaign = Campaign(Tiny(), "smoke", INPUTS, Folder(tmp_path))
  assert [job.name for job in campaign.jobs] == ["first"]
  campaign.run(1, "abc")
  analysis = analysis_of(Tiny(), "smoke", campaign.jobs, campaign.folder)
  assert analysis["steps"] == {"first": 10, "last": 10}
  assert (analysis["finished"], analysis["runs"]) == (2, 4)
  assert analysis["failed"] == {"bad": "ValueError: no luck", "after": "it starts from bad"}
  failed = ["bad failed: ValueError: no luck", "after failed: it starts from bad"]
  assert lines_of(Tiny(), analysis) == ["first: 10", "last: 10", "", *failed]


def test_the_time_left_is_that_of_the_finished_runs_by_weight(tmp_path, made_up, monkeypatch):
  jobs, folder = [tiny("first", 3.0), tiny("last", 2.0)], Folder(tmp_path)
  assert hours_left(jobs, []) is None
  clock = iter([0.0, 5400.0])
  monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
  worker.work(str(tmp_path), jobs[:1], "", None)
  assert hours_left(jobs, folder.results(jobs)) == pytest.approx(1.0)


def test_progress_says_how_many_runs_are_finished_and_how_long_the_others_take(tmp_path):
  jobs = [tiny("first", 3.0), tiny("last", 2.0)]

  class Two(Tiny):
    name = "two"

    def jobs(self, budget, inputs, results):
      return jobs

  campaign = Campaign(Two(), "smoke", INPUTS, Folder(tmp_path))
  assert campaign.progress(2) == "0 of 2 runs are finished" and campaign.folder.missing(campaign.jobs) == jobs
  campaign.folder.write_result(Result("first", {}, jobs[0].compared, "", 5400.0, 1, {}, {}))
  said = "1 of 2 runs are finished; the others take about 1.0 hours one after the other"
  assert campaign.progress(1) == said and campaign.folder.missing(campaign.jobs) == jobs[1:]
  assert campaign.progress(2) == f"{said}, 0.5 with --jobs=2"


TEXT = {"wiki.jsonl.xz": 31}
READ = {"text": TEXT}


class Again(Study):
  """The first seed of two simulated arms, a third arm, and what is given."""

  name, runs = "again", "decoder"

  def __init__(self, *more):
    self.more = more

  def jobs(self, budget, inputs, results):
    return [simulated_job(arm, 0) for arm in ("dense", "hash", "mine")] + list(self.more)


@pytest.fixture
def published(tmp_path):
  """A folder with a results file of the runs that `Again` has."""
  folder = tmp_path / "published"
  folder.mkdir()
  for budget, losses in (("cpu", {"dense": 3.5, "hash": 3.4}), ("gpu", {"dense": 2.5, "mine": 2.4})):
    study, analysis = simulated_analysis(tmp_path / "runs", "base", losses, budget=budget)
    (folder / f"base-{budget}.json").write_text(file_text(analysis | {"text": TEXT}))
  assert study.runs == Again.runs
  return folder


def known(study, folder, source, read=READ):
  """A campaign of which the runs in the results files count as finished."""
  return Campaign(study, "cpu", INPUTS, folder, published_results(study, "cpu", source, read))


def test_runs_of_a_results_file_are_not_made_again(published, tmp_path):
  folder = Folder(tmp_path / "new")
  jobs = known(Again(), folder, published).jobs
  assert [folder.is_finished(job.name) for job in jobs] == [True, True, False]
  assert not folder.root.exists()
  folder.claim("decoder", "cpu", READ)
  found = Folder(tmp_path / "new").results(jobs)
  original = Folder(tmp_path / "runs" / "base-cpu").results(jobs)
  assert [result.name for result in found] == ["dense/seed-0", "hash/seed-0"]
  for one, other in zip(found, original, strict=True):
    assert (one.config, one.tags, one.commit, one.step) == (other.config, other.tags, other.commit, other.step)
    assert one.blocks["own"] == pytest.approx(other.blocks["own"], rel=1e-5)
  assert len(Folder(tmp_path / "new").ready(jobs)) == 1


def test_a_known_run_that_a_missing_one_starts_from_is_run_again(published, tmp_path):
  study, folder = Again(Job("measured", {}, source="hash/seed-0", measure="leak")), Folder(tmp_path / "new")
  campaign = known(study, folder, published)
  campaign.take_back_sources()
  assert [job.name for job in campaign.jobs if folder.is_finished(job.name)] == ["dense/seed-0"]


def test_so_it_is_if_it_was_taken_before_by_another_study_and_its_result_is_kept_aside(published, tmp_path):
  folder = Folder(tmp_path / "new")
  known(Again(), folder, published)
  folder.claim("decoder", "cpu", READ)
  study, folder = Again(Job("measured", {}, source="hash/seed-0", measure="leak")), Folder(tmp_path / "new")
  campaign = Campaign(study, "cpu", INPUTS, folder)
  campaign.take_back_sources()
  result = folder.root / "results" / "hash" / "seed-0.json"
  before = result.read_text()  # still there: nothing has been claimed
  assert [job.name for job in folder.ready(campaign.jobs)] == ["hash/seed-0", "mine/seed-0"]
  assert [one.name for one in campaign.results] == ["dense/seed-0"]
  folder.claim("decoder", "cpu", READ)
  assert not result.exists() and (folder.root / "aside" / "hash" / "seed-0.json").read_text() == before


def test_of_a_chain_all_runs_before_a_missing_one_are_run_again_and_those_that_are_there_are_not(tmp_path):
  chain = [Job(str(i), {"train": {"steps": 1}}, source=str(i - 1) if i else "", measure="tiny") for i in range(4)]
  folder = Folder(tmp_path)
  for job in chain[:3]:
    folder.add(Result(job.name, {}, job.compared, "abc", 1.0, 1, {}, {}))
  folder.workdir("0").mkdir(parents=True)
  (folder.workdir("0") / "config.json").write_text("{}")

  class Chain(Tiny):
    name = "chain"

    def jobs(self, budget, inputs, results):
      return chain

  Campaign(Chain(), "smoke", INPUTS, folder).take_back_sources()
  assert [job.name for job in chain if folder.is_finished(job.name)] == ["0"]


def test_a_published_run_that_is_known_only_once_another_has_run_is_not_made_again(published, tmp_path, monkeypatch):
  class Later(Again):
    """Has its second job once the third has a result."""

    name = "later"

    def jobs(self, budget, inputs, results):
      dense, hashed, mine = super().jobs(budget, inputs, results)
      return [dense, mine] + [hashed] * any(result.name == mine.name for result in results)

  run = []

  def run_missing(folder, jobs, processes, commit):
    for job in folder.ready(jobs):
      run.append(job.name)
      folder.write_result(Result(job.name, dict(job.tags), job.compared, commit, 1.0, 1, {"loss": 3.0}, {}))

  monkeypatch.setattr("moe.studies.running.campaign.run_missing", run_missing)
  folder = Folder(tmp_path / "new")
  campaign = known(Later(), folder, published)
  folder.claim("decoder", "cpu", READ)
  campaign.run(1, "abc")
  assert run == ["mine/seed-0"]
  found = Folder(folder.root).results(campaign.jobs)
  assert [one.name for one in found] == ["dense/seed-0", "mine/seed-0", "hash/seed-0"]


def test_of_another_text_or_config_no_run_is_taken(published, tmp_path):
  folder = Folder(tmp_path / "new")
  assert not known(Again(), folder, published, {"text": {"wiki.jsonl.xz": 32}}).results
  path = published / "base-cpu.json"
  path.write_text(path.read_text().replace('"d_model": 8', '"d_model": 16'))
  assert not known(Again(), folder, published).results


def test_of_other_data_no_run_is_taken(published, tmp_path):
  path, folder = published / "base-cpu.json", Folder(tmp_path / "new")
  path.write_text(file_text(json.loads(path.read_text()) | {"data_dir": {"mnist/3.0.1 train": 60_000}}))
  other, same = (READ | {"data_dir": {"mnist/3.0.1 train": size}} for size in (50_000, 60_000))
  assert not known(Again(), folder, published, other).results
  assert known(Again(), folder, published, same).results


def test_a_run_that_has_diverged_elsewhere_has_an_infinite_loss(published):
  analysis = json.loads((published / "base-cpu.json").read_text())
  analysis["results"][1]["validation"]["loss"] = None
  assert [result.validation["loss"] for result in results_of(analysis)][1] == math.inf
