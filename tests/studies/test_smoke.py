"""Every study of models from its first run to its verdicts, as small as it gets, in one folder."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from moe.data.formats.token_directory import open_feature, read_meta
from moe.evaluation.restore import restore
from moe.studies import Study
from moe.studies.claims.transfer.lifelong import Lifelong
from moe.studies.language_models import LanguageModels
from moe.studies.reporting.results_file import analysis_of, config_of, file_text
from moe.studies.running.campaign import Campaign
from moe.studies.running.folder import Folder
from moe.studies.study import Inputs
from moe.training.optimization.parts import by_path
from tests.training.tiny import write_corpus

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


def analysed(study, inputs, root):
  """Runs what is missing of a study, and reads what its results file says."""
  folder = Folder(root / f"{study.runs}-smoke")
  folder.check(study.runs, "smoke")
  campaign = Campaign(study, "smoke", inputs, folder)
  study.check_inputs("smoke", inputs)
  folder.claim(study.runs, "smoke")
  study.prepare(inputs)
  campaign.run(1, "abc")
  return json.loads(file_text(analysis_of(study, "smoke", campaign.jobs, folder)))


def documents_of(folder):
  """The ids of the training documents of a token directory."""
  feature = open_feature(folder, "train", "targets", read_meta(folder))
  documents = feature.part(0, len(feature.offsets) - 1)
  return [documents[number].tolist() for number in range(len(documents))]


def test_a_growing_model_has_verdicts_and_grows_between_its_stages(inputs, here, tmp_path):
  """Of two texts, of which the second is the first again, under another name."""
  text = pathlib.Path(inputs.text)
  again = shutil.copy(text, tmp_path / "again.jsonl")
  study, both = Lifelong(), dataclasses.replace(inputs, text=f"{text},{again}", tokens=str(tmp_path / "tokens"))
  analysis = analysed(study, both, tmp_path)
  assert analysis["failed"] == {} and analysis["finished"] == analysis["runs"] == 2 * 3
  assert analysis["texts"] == ["0-text", "1-again"]
  experts = {
    one["name"]: config_of(analysis, one)["model"]["decoder"]["moe"]["num_experts"]
    for one in analysis["results"]
    if "measures" not in one["name"]
  }
  assert experts["continued/seed-0/0-text"] == experts["continued/seed-0/1-again"] == 4
  assert experts["grown/seed-0/1-again"] == 6
  runs = tmp_path / "lifelong-smoke" / "runs"
  old, new = (restore(runs / name, "latest") for name in ("continued/seed-0/0-text", "grown/seed-0/1-again"))
  before, after = by_path(old.params), by_path(new.params)
  for path in before:
    if "/moe/" in path:  # frozen
      np.testing.assert_array_equal(before[path], after[path][:, :4] if "/experts/" in path else after[path][..., :4])
    else:
      assert not np.array_equal(before[path], after[path]), path
  joint, one, two = (documents_of(tmp_path / "texts" / name) for name in ("joint", "0-text", "1-again"))
  assert sorted(joint) == sorted(one + two) and joint != one + two
  first = analysis["contrasts"][0]
  assert first["claim"].startswith("grown forgets less than continued")
  assert first["value"] == pytest.approx(
    np.mean(np.subtract(*(analysis["forgetting"][arm] for arm in ("continued", "grown")))), rel=1e-4
  )
  assert len(study.lines(analysis)) > len(analysis["contrasts"]) + 4
  without_text = dataclasses.replace(both, text="")  # as with --report
  assert study.jobs("smoke", without_text, []) == study.jobs("smoke", both, [])


def studies_of(setting, slow):
  """All of a setting; unless `slow`, one of those that are arms and contrasts alone, without code of their own."""
  found = [study for study in STUDIES if study.setting.name == setting]
  alike = [study for study in found if not any(map(callable, vars(study).values()))]
  return found if slow else [study for study in found if study not in alike[1:]]


@pytest.mark.parametrize("setting", ["decoder", "encoder", "vision"])
def test_every_study_has_verdicts(setting, inputs, here, tmp_path, pytestconfig):
  for study in [each() for each in studies_of(setting, pytestconfig.getoption("--slow"))]:
    analysis = analysed(study, inputs, tmp_path)
    assert analysis["failed"] == {}, study.name
    assert analysis["finished"] == analysis["runs"] > 0, study.name
    verdicts = {one["verdict"] for one in analysis["contrasts"]}
    assert verdicts and verdicts <= {"held", "did not hold", "not resolved"}, study.name
    assert bool(study.control) == (analysis["control"] is not None), study.name
    assert len(study.lines(analysis)) > len(verdicts), study.name
    assert study.draw(analysis, tmp_path / "figure.png"), study.name
