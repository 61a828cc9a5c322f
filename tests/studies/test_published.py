"""What is published as finished is all that today's studies would run."""

import pathlib

import pytest

from moe.studies.reporting.results_file import read_analysis, results_of
from moe.studies.study import Inputs

PUBLISHED = sorted((pathlib.Path(__file__).parents[2] / "results" / "studies").glob("*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_no_run_is_missing_of_a_study_that_is_published_as_finished(path, monkeypatch, tmp_path):
  """Among them are learning rates beyond the grid's ends, and what is chosen by earlier results."""
  monkeypatch.setattr("moe.studies.language_models.matched_steps", lambda *_: 1000)  # names do not depend on FLOPs
  study, analysis = read_analysis(path)
  results, texts = results_of(analysis), [tmp_path / pathlib.Path(name).name for name in analysis.get("text", {})]
  for text in texts:
    text.touch()
  inputs = Inputs(",".join(map(str, texts)), "", tokens="tokens")
  named = {job.name for job in study.jobs(analysis["budget"], inputs, results)}
  missing = named - {one.name for one in results}
  assert bool(missing) == (analysis["finished"] < analysis["runs"])
