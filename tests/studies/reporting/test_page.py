"""The page of a folder of studies."""

import base64
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from moe.studies.reporting.page import render_studies
from moe.studies.reporting.results_file import file_text, lines_of
from moe.studies.running.folder import StudyError
from tests.studies.simulated import simulated_analysis

ROOT = pathlib.Path(__file__).parents[3]
LOSSES = {"dense": 3.5, "switch": 3.45, "hash": float("nan"), "base": 3.4}


@pytest.fixture
def studies(tmp_path):
  """A folder with the results of `base` and of `soft`, and one run of `base` that is still there."""
  for name in ("base", "soft"):
    _, analysis = simulated_analysis(tmp_path, name, LOSSES)
    (tmp_path / f"{name}-cpu.json").write_text(file_text(analysis))
  (tmp_path / "decoder-cpu" / "runs" / "base" / "seed-0").mkdir(parents=True)
  return tmp_path


def parsed(page):
  return ElementTree.fromstring(page.split("\n", 1)[1])


def test_every_study_has_its_sentences_its_table_its_figure_and_links_to_the_runs_that_are_there(studies):
  root = parsed(render_studies(sorted(studies.glob("*.json"))))
  titles = [section.find("h2").text for section in root.iter("section")]
  assert titles == ["base, cpu", "soft, cpu"]
  base = next(root.iter("section"))
  study, analysis = simulated_analysis(studies / "again", "base", LOSSES)
  lines = lines_of(study, analysis)
  shown = [item.text for item in base.find("ul")]
  assert shown == [line for line in lines if line and not line.startswith("|")]
  assert [row[0].text for row in base.find(".//tbody")] == ["base", "switch", "dense", "hash"]
  (image,) = base.iter("img")
  assert base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
  runs = [item for item in base.find("details/ul")]
  assert len(runs) == 12 and runs[0].text == "dense/seed-0"
  linked = {link.text: link.get("href") for link in base.iter("a")}
  assert linked == {"base/seed-0": (studies / "decoder-cpu" / "runs" / "base" / "seed-0").as_uri()}


def test_of_several_folders_each_section_says_which_it_is_of_and_has_a_link_of_its_own(studies, tmp_path_factory):
  other = tmp_path_factory.mktemp("others") / "mine"
  other.mkdir()
  (other / "base-cpu.json").write_text((studies / "base-cpu.json").read_text())
  root = parsed(render_studies([studies / "base-cpu.json", other / "base-cpu.json"]))
  sections = list(root.iter("section"))
  assert [one.find("h2").text for one in sections] == [f"base, cpu, {studies.name}", "base, cpu, mine"]
  links = [link.get("href") for link in root.iter("a") if link.get("href").startswith("#")]
  assert links == [f"#{one.get('id')}" for one in sections] and len(set(links)) == 2


def test_the_browser_may_show_the_images_of_the_page_and_load_nothing(studies):
  page = render_studies(sorted(studies.glob("*.json")))
  (policy,) = [element.get("content") for element in parsed(page).iter("meta") if element.get("http-equiv")]
  assert policy.startswith("default-src 'none'; ") and policy.endswith("'; img-src data:")
  assert not re.search(r"https?:|url\(|@import", page)


def test_a_file_of_something_else_is_refused(tmp_path):
  (tmp_path / "notes.json").write_text("{}")
  with pytest.raises(StudyError, match=r"notes\.json cannot be read"):
    render_studies([tmp_path / "notes.json"])


def report(folder, *arguments):
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "moe.report", *arguments]
  return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_studies_and_runs_are_not_mixed(studies):
  run = studies / "decoder-cpu" / "runs" / "base" / "seed-0"
  done = report(studies, f"--workdir={studies}", f"--workdir={run}")
  expected = f"error: --workdir = {str(run)!r}: expected a folder of studies, as the others are\n"
  assert (done.returncode, done.stderr) == (2, expected)


def test_the_main_writes_it_for_a_folder_of_studies(studies):
  done = report(studies, f"--workdir={studies}", "--out=page.html")
  assert (done.returncode, done.stderr) == (0, "")
  assert "written to page.html" in done.stdout
  assert len(list(parsed((studies / "page.html").read_text()).iter("img"))) == 2
