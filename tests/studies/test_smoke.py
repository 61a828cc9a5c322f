"""Every study of models from its first run to its verdicts, as small as it gets, in one folder."""

import json

import numpy as np
import pytest
from PIL import Image

from moe.studies import Study, worker
from moe.studies.conduct import known_jobs, run_study
from moe.studies.folder import Folder
from moe.studies.language_models import LanguageModels
from moe.studies.reporting.results_file import analysis_of, file_text
from moe.studies.study import Inputs
from tests.training.conftest import compiled_programs
from tests.training.tiny import write_corpus

__all__ = ["compiled_programs"]

STUDIES = [study for study in Study.choices.values() if issubclass(study, LanguageModels)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """Text of the smoke runs, where its tokens are, and pictures: beside the folders of runs, which studies share."""
  root, draw = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
  text = write_corpus(root / "text.jsonl", documents=300)
  for label in range(10):
    (root / "pictures" / str(label)).mkdir(parents=True)
    for number in range(8):
      pixels = draw.integers(256, size=(28, 28)).astype(np.uint8)
      Image.fromarray(pixels).save(root / "pictures" / str(label) / f"{number}.png")
  return Inputs(str(text), str(root / "pictures"), tokens=str(root / "tokens"))


@pytest.fixture
def here(monkeypatch):
  """Runs are made in this process, which has compiled what they share."""

  def run_missing(folder, jobs, processes, commit):
    worker.work(str(folder.root), jobs, commit, None)

  monkeypatch.setattr("moe.studies.conduct.run_missing", run_missing)


def analysed(study, inputs, root):
  """Runs what is missing of a study, and reads what its results file says."""
  folder = Folder(root / f"{study.runs}-smoke")
  folder.check(study.runs, "smoke")
  jobs = known_jobs(study, "smoke", inputs, folder)
  study.check_inputs(inputs, jobs)
  folder.claim(study.runs, "smoke")
  study.prepare(inputs)
  jobs = run_study(study, "smoke", inputs, folder, jobs, 1, "abc")
  return json.loads(file_text(analysis_of(study, "smoke", jobs, folder)))


@pytest.mark.parametrize("setting", ["decoder", "encoder", "vision"])
def test_every_study_has_verdicts(setting, inputs, here, tmp_path):
  for study in [each() for each in STUDIES if each.setting.name == setting]:
    analysis = analysed(study, inputs, tmp_path)
    assert analysis["failed"] == {}, study.name
    assert analysis["finished"] == analysis["runs"] > 0, study.name
    verdicts = {one["verdict"] for one in analysis["contrasts"]}
    assert verdicts and verdicts <= {"held", "did not hold", "not resolved"}, study.name
    assert bool(study.control) == (analysis["control"] is not None), study.name
    assert len(study.lines(analysis)) > len(verdicts), study.name
    assert study.draw(analysis, tmp_path / "figure.png"), study.name
