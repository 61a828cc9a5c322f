"""Every config file is a valid experiment."""

import importlib
import pathlib

import pytest

from configs import t5_mini
from moe.data.tasks.glue import ELEVEN, MIXTURE
from moe.training.experiment import load_config

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = [
  str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
  for path in sorted((ROOT / "configs").rglob("*.py"))
  if path.stem != "base"
]


def tree_of(name: str) -> dict:
  """The config of a file; of fine-tuning with the model and the vocabulary that a pretrained run hands down."""
  tree = importlib.import_module(name).get_config().to_dict()
  if "init" in tree:
    source = t5_mini.get_config().to_dict()
    tree["init"]["workdir"] = "runs/t5_mini"
    tree["model"] = source["model"] | tree["model"]
    tree["data"] |= {field: source["data"][field] for field in ("vocabulary", "extra_ids")}
  return tree


@pytest.mark.parametrize("name", CONFIGS)
def test_config_file_is_a_valid_experiment(name):
  loaded = load_config(tree_of(name))
  assert loaded.model.leaks_future == loaded.model.allow_future_leakage


def test_the_eleven_tasks_have_a_config_each_and_one_together():
  names = {name.rsplit(".", 1)[1] for name in CONFIGS if name.startswith("configs.finetune.")}
  assert names == {*ELEVEN, MIXTURE}
  for name in names:
    assert tree_of(f"configs.finetune.{name}")["data"]["source"]["task"] == name
