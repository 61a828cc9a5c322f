"""The parts of documents that are made from the results of studies."""

import json

import pytest

from moe.markdown import table_cells
from moe.studies import Study
from moe.studies.reporting.results_file import file_text
from scripts.study_results import chapters, draw, overview, read_results
from scripts.update_readme import updated_documents
from tests.studies.simulated import simulated_analysis

LOSSES = {"dense": 3.5, "switch": 3.45, "hash": 3.46, "base": 3.4, "sinkhorn_base": 3.41}


@pytest.fixture
def results(tmp_path):
  """What is read of a folder with one results file."""
  _, analysis = simulated_analysis(tmp_path / "runs", "base", LOSSES)
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "base-cpu.json").write_text(file_text(analysis))
  found = read_results(tmp_path / "results")
  assert found == {"base-cpu": analysis}
  return found


def rows(table):
  lines = [line for line in table.splitlines() if line.startswith("|")]
  return {first: others for first, *others in table_cells(lines)[1:]}


def test_without_results_every_study_is_there_with_the_command_that_makes_it(tmp_path):
  assert read_results(tmp_path / "missing") == {}
  table, text = overview({}), chapters({})
  assert all(f"`{name}`" in table.partition("Not run yet: ")[2] for name in Study.choices)
  for name in Study.choices:
    chapter = text.partition(f"### `{name}`")[2]
    assert f"`python -m moe.study --study {name} --budget cpu --workdir runs/studies" in chapter.partition("###")[0]


def test_a_result_has_its_verdict_number_and_interval_in_the_table(results):
  found = rows(overview(results))
  claim, verdict, number, seeds, budget, regime = found["base"]
  assert (claim, verdict, seeds, budget, regime) == (Study.choices["base"].claim, "**held**", "3", "cpu", "held")
  # The difference is 0.05 and less by 0.002 with each seed: 0.05, 0.048, 0.046.
  assert number == "base against switch: +0.0480 nats per token, [+0.0430, +0.0530]"
  assert found.keys() == {"base"}
  assert "`soft`" in overview(results).partition("Not run yet: ")[2]


def test_a_chapter_has_the_figure_the_table_and_every_sentence(results, tmp_path):
  text = chapters(results).partition("### `base`")[2].partition("### ")[0]
  assert "Budget `cpu`, 15 of 15 runs, commit 0123:" in text
  assert "](docs/studies/base-cpu.png)" in text
  assert "| base | 3.5" in text and "Not run yet" not in text
  contrasts = results["base-cpu"]["contrasts"]
  assert len([line for line in text.splitlines() if line.startswith("- ")]) == len(contrasts) + 1  # and the regime
  (tmp_path / "docs").mkdir()
  draw(results, tmp_path)
  assert (tmp_path / "docs" / "studies" / "base-cpu.png").exists()


def test_the_command_of_a_result_names_the_text_that_its_runs_have_read(results):
  read = {"base-cpu": results["base-cpu"] | {"text": {"wiki.jsonl.xz": 31, "novels.txt": 20}}}
  assert '--text "text/wiki.jsonl.xz,text/novels.txt"`' in chapters(read).partition("### `base`")[2].partition("###")[0]


def test_documents_with_results_are_updated_once_and_stay(results):
  marked = "<!-- studies -->\n<!-- /studies -->\n<!-- study_results -->\n<!-- /study_results -->\n"
  blocks = {"studies": overview(results), "study_results": chapters(results)}
  found = updated_documents({"docs/studies.md": marked}, blocks)
  assert "](studies/base-cpu.png)" in found["docs/studies.md"]
  assert updated_documents(found, blocks) == found


def test_two_budgets_of_a_study_have_two_rows(results, tmp_path):
  more = {**results, "base-gpu": json.loads(json.dumps(results["base-cpu"])) | {"budget": "gpu"}}
  assert overview(more).count("| base | ") == 2 and chapters(more).count("### `base`") == 1
