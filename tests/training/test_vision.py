"""Pictures go through the same trainer, checkpoints, evaluation and report as text."""

import json

import jax
import numpy as np
import pytest

from moe.config import ConfigError
from moe.evaluation.linear_probe import few_shot_accuracy
from moe.evaluation.restore import Trained, restore
from moe.planning.capacities import at_capacities, with_capacity
from moe.training.experiment import load_config
from moe.training.metrics_file import read_metrics
from moe.training.trainer import train
from tests.training.pictures import vision_mapping, write_pictures

PRIORITY = {"name": "batch_priority", "top_k": 1, "capacity_factor": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
  """The workdir of a finished run with batch priority."""
  path = tmp_path_factory.mktemp("runs") / "run"
  train(load_config(vision_mapping(folder, PRIORITY)), path)
  return path


def test_a_tiny_model_learns_and_its_records_have_accuracy_and_no_bytes(run):
  records = read_metrics(run / "metrics.jsonl")
  first, last = records[0], next(record for record in records if record["kind"] == "validation")
  assert first["loss"] == pytest.approx(np.log(3), abs=1e-5), "the head begins at 0"
  assert last["accuracy"] == 1
  assert last["tokens"] == 12, "a quarter of every class"
  assert all("bits_per_byte" not in record and "bytes" not in record for record in records)
  assert records[0]["encoder/tokens"] == 8 * 4
  assert records[0]["target_tokens"] == 8


def test_a_resumed_run_is_that_of_one_that_was_never_stopped(run, folder, tmp_path):
  mapping = vision_mapping(folder, PRIORITY)
  train(load_config(vision_mapping(folder, PRIORITY, steps=8)), tmp_path / "run")
  train(load_config(mapping), tmp_path / "run")
  whole, resumed = (
    [record["loss"] for record in read_metrics(path / "metrics.jsonl") if record["kind"] == "train"]
    for path in (run, tmp_path / "run")
  )
  assert resumed == whole
  for one, other in zip(jax.tree.leaves(restore(run).params), jax.tree.leaves(restore(tmp_path / "run").params)):
    np.testing.assert_array_equal(one, other)


def test_one_checkpoint_has_a_table_of_quality_and_compute(run):
  trained = restore(run)
  found = at_capacities(trained, trained.config.data, "validation", (0.25, 0.5, 1.0, 4.0))
  assert found[-1].dropped == 0, "there is room for all at E slots per token"
  dropped = [one.dropped for one in found]
  assert dropped == sorted(dropped, reverse=True)
  assert dropped[0] >= 0.75 - 1e-6
  slots, row = np.diff([one.flops for one in found]), 2 * 2 * 16 * 32  # two products of the experts
  np.testing.assert_allclose(slots, [0.25 * 4 * row, 0.5 * 4 * row, 3 * 4 * row])
  assert found[-1].accuracy == 1


def test_only_slots_have_a_capacity(run, folder):
  trained = restore(run)
  with pytest.raises(ConfigError, match="--capacities = 0: expected more than 0"):
    with_capacity(trained, 0)
  soft = load_config(vision_mapping(folder, {"name": "soft_moe"}))
  with pytest.raises(ConfigError, match="--capacities = 'soft_moe': expected a router with a capacity factor"):
    with_capacity(type(trained)(**{**trained.__dict__, "config": soft}), 0.5)


def test_a_fixed_number_of_slots_has_no_capacity(folder):
  """Every factor would give the same numbers."""
  config = load_config(vision_mapping(folder, PRIORITY | {"slots": 2}))
  with pytest.raises(ConfigError, match="--capacities = 'batch_priority': expected a router with slots = None"):
    with_capacity(Trained(config, 0, None, {}, {}, {}, None), 0.5)


def test_a_probe_on_two_pictures_of_each_class_tells_colours_apart(run):
  trained = restore(run)
  assert few_shot_accuracy(trained, trained.config.data, 2, "validation") == 1
  with pytest.raises(ConfigError, match="--shots = 0: expected at least 1"):
    few_shot_accuracy(trained, trained.config.data, 0, "validation")


def test_a_tokens_length_that_is_not_the_models_is_refused(folder):
  mapping = vision_mapping(folder)
  mapping["data"]["inputs_length"] = 5
  with pytest.raises(
    ConfigError, match=r"config\.data\.inputs_length = 5: expected 4, the model's tokens of a picture"
  ):
    load_config(mapping)
  mapping = vision_mapping(folder) | {"data": json.loads(json.dumps(vision_mapping(folder)["data"]))}
  mapping["data"] |= {
    "source": "standard_library",
    "objective": "prefix_lm",
    "vocabulary": "bytes",
    "targets_length": 4,
  }
  with pytest.raises(ConfigError, match=r"objective\.name = 'prefix_lm': expected 'classification'"):
    load_config(mapping)
