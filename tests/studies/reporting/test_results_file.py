import json
import os
import pathlib
import subprocess
import sys

import pytest

from moe.config import ConfigError
from moe.studies.reporting.results_file import analysis_of, config_of, file_text, lines_of, read_analysis
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job, Result, Study
from tests.studies.simulated import simulated_analysis

LOSSES = {"dense": 3.5, "dropless_top2": 3.4, "expert_choice": 3.45, "gshard": 3.3, "switch": float("nan")}


def test_a_results_file_is_strict_json_with_a_line_per_run_from_which_the_same_markdown_is_made(tmp_path):
  study, analysis = simulated_analysis(tmp_path, "convergence", LOSSES, twins=("expert_choice",))
  path = tmp_path / "convergence-cpu.json"
  path.write_text(file_text(analysis))

  def refuse(constant):
    raise AssertionError(constant)

  assert json.loads(path.read_text(), parse_constant=refuse) == analysis
  assert len(path.read_text().splitlines()) == len(analysis) + len(analysis["results"]) + 3
  again, read = read_analysis(path)
  assert isinstance(again, type(study)) and read == analysis
  lines = lines_of(again, read)
  assert lines == lines_of(study, analysis)
  assert [line.split("|")[1].strip() for line in lines[2:7]] == [*sorted(LOSSES, key=LOSSES.get)[:4], "switch"]
  regime = "Does this regime count? dropless_top2 is better than dense: held. +0.0990 nats per token, [+0.0"
  assert any(line.startswith(regime) for line in lines)


def test_numbers_have_six_digits_and_null_stands_for_those_that_are_not_finite(tmp_path):
  _, analysis = simulated_analysis(tmp_path, "convergence", {"dense": 3.123456789, "switch": float("inf")}, seeds=1)
  dense, switch = analysis["results"]
  assert dense["curve"][-1] == {"step": 400, "loss": 3.12346} and dense["blocks"]["own"][0] == 3.11346
  assert switch["curve"][-1]["loss"] is None and analysis["arms"]["switch"]["losses"]["own"] == [None]
  assert dense["parameters"] == 1000 and isinstance(dense["parameters"], int)


def test_what_all_configs_have_in_common_is_kept_once(tmp_path):
  _, analysis = simulated_analysis(tmp_path, "convergence", {"dense": 3.5, "gshard": 3.4}, seeds=2)
  folder = Folder(tmp_path / "convergence-cpu")
  assert analysis["config"]["model"] == {"d_model": 8}
  assert analysis["results"][3]["config"] == {"seed": 1, "model": {"router": {"name": "gshard"}}}
  for result in analysis["results"]:
    kept = json.loads((folder.root / "results" / f"{result['name']}.json").read_text())
    assert config_of(analysis, result) == kept["config"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"study": "x"'])
def test_a_file_that_is_no_results_file_is_one_line(tmp_path, text):
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(StudyError, match="expected the results file of a study"):
    read_analysis(path)


def test_the_results_of_an_unknown_study_are_refused(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('{"study": "later"}')
  with pytest.raises(ConfigError, match=r"study = 'later': expected one of .*convergence"):
    read_analysis(path)


def test_a_measurement_has_no_part_in_what_configs_have_in_common(tmp_path):
  folder, study = Folder(tmp_path), Study.choices["leak"]()
  run = Job("dense/seed-0", {"seed": 0, "data": {"source": {}}}, tags={"arm": "dense", "seed": "tuning", "rate": 0.01})
  measurement = Job("dense/measured", {}, source=run.name, measure="leak")
  folder.write_result(Result(run.name, run.tags, run.compared, "", 1.0, 1, {"loss": 3.0}, {}))
  measured = {"future": 0.0, "company": 0.0, "nats": 0.1}
  folder.write_result(
    Result("dense/measured", {"arm": "dense", "seed": 0}, measurement.compared, "", 1.0, 0, {}, {}, measured=measured)
  )
  analysis = json.loads(file_text(analysis_of(study, "cpu", [run, measurement], folder)))
  assert analysis["config"]["seed"] == 0
  assert [config_of(analysis, one) for one in analysis["results"]] == [run.compared, {"measure": "leak"}]


def test_the_main_analyses_a_folder_without_the_text_and_says_what_it_was(tmp_path):
  Folder(tmp_path / "finetune-smoke").claim("finetune", "smoke", {"text": {"wiki.jsonl.xz": 31}})
  command = [
    sys.executable,
    "-m",
    "moe.study",
    "--study=finetune",
    "--budget=smoke",
    f"--workdir={tmp_path}",
    "--report",
  ]
  environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  path = tmp_path / "finetune-smoke.json"
  assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"written to {path}"), done.stderr
  study, analysis = read_analysis(path)
  assert (study.name, analysis["finished"], analysis["results"]) == ("finetune", 0, [])
  assert analysis["text"] == {"wiki.jsonl.xz": 31}


def test_paths_below_the_folder_are_relative_so_that_the_file_names_no_place_of_a_machine(tmp_path):
  folder, study = Folder(tmp_path), Study.choices["hash"]()
  measurement = Job("measures/hash", {}, source="dense/seed-0", measure="hash")
  tags, measured = {"arm": "dense", "seed": 0}, {"tables": {"balanced": str(tmp_path / "runs" / "balanced.npz")}}
  folder.write_result(Result(measurement.name, tags, measurement.compared, "", 1.0, 0, {}, {}, measured=measured))
  text = file_text(analysis_of(study, "cpu", [measurement], folder))
  assert json.loads(text)["results"][0]["measured"] == {"tables": {"balanced": "runs/balanced.npz"}}
  assert str(tmp_path) not in text
