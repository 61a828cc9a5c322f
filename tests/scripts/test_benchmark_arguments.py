"""Arguments of the benchmarks."""

import argparse

import pytest

from scripts.benchmarks.arguments import absent_path, positive_int


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_a_count_is_a_positive_whole_number(text):
  assert positive_int("12") == 12
  with pytest.raises(argparse.ArgumentTypeError, match="expected a positive whole number"):
    positive_int(text)


def test_a_results_file_is_never_overwritten(tmp_path):
  path = tmp_path / "results.json"
  assert absent_path(str(path)) == path
  path.write_text("measured")
  with pytest.raises(argparse.ArgumentTypeError, match="expected a path that does not exist"):
    absent_path(str(path))
