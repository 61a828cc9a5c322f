"""Every config file is a valid experiment."""

import importlib
import pathlib

import pytest

from moe.training.experiment import load_config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = [
  str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
  for path in sorted((ROOT / "configs").rglob("*.py"))
  if path.stem != "base"
]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_file_is_a_valid_experiment(name):
  loaded = load_config(importlib.import_module(name).get_config())
  assert loaded.model.leaks_future == loaded.model.allow_future_leakage
