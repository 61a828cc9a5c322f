"""Arguments of the benchmarks."""

import argparse

import pytest

from scripts.benchmarks.command_line import new_file, positive


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_a_count_is_a_positive_whole_number(text):
  assert positive("12") == 12
  with pytest.raises(argparse.ArgumentTypeError, match="is not a positive whole number"):
    positive(text)


def test_a_results_file_is_never_overwritten(tmp_path):
  path = tmp_path / "results.json"
  assert new_file(str(path)) == path
  path.write_text("measured")
  with pytest.raises(argparse.ArgumentTypeError, match="exists; name a new file"):
    new_file(str(path))
