"""A run that was not trained where it lies: whole, usable like any other, and never on top of something else."""

import jax
import numpy as np
import pytest

from moe.config import ConfigError
from moe.convert.new_run import new_workdir, write_run
from moe.data import load_vocabulary
from moe.evaluation.restore import restore
from moe.parallel.mesh import make_mesh
from moe.training.setup import Setup
from moe.training.state import stored_router_state
from moe.training.trainer import train
from tests.training.tiny import tiny_config, write_corpus


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return tiny_config(write_corpus(tmp_path_factory.mktemp("data") / "corpus.jsonl"))


@pytest.fixture(scope="module")
def state(config):
  setup = Setup(config, make_mesh(config.mesh))
  return setup.first_state(stored_router_state(config.model, ""))


@pytest.fixture(scope="module")
def vocabulary(config):
  return load_vocabulary("bytes", 0)


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_it_has_the_arrays_the_step_and_the_config(config, state, vocabulary, tmp_path):
  write_run(new_workdir(tmp_path / "run"), config, state.params, state.router_state, vocabulary, step=7)
  found = restore(tmp_path / "run")
  assert found.step == 7
  assert_same(found.params, state.params)
  assert found.config.model == config.model and found.config.data == config.data


def test_training_it_begins_with_its_data_and_with_the_given_statistics(config, state, vocabulary, tmp_path):
  """Written at step 0 of a run, training gives the run itself."""
  options = {"opt_state": state.opt_state}
  write_run(new_workdir(tmp_path / "run"), config, state.params, state.router_state, vocabulary, **options)
  again, first = train(config, tmp_path / "run"), train(config, tmp_path / "first")
  assert again.step == first.step == 12
  assert again.train["loss"] == first.train["loss"]


def test_a_folder_with_something_in_it_is_refused(tmp_path):
  (tmp_path / "note").write_text("mine")
  for path in (tmp_path, tmp_path / "note"):
    with pytest.raises(ConfigError, match=r"--workdir = .*: expected a new folder, or an empty one"):
      new_workdir(path)
  (tmp_path / "empty").mkdir()
  new_workdir(tmp_path / "empty")


def test_arrays_of_another_model_are_a_mistake_of_the_caller(config, state, vocabulary, tmp_path):
  params = jax.tree.map(lambda leaf: leaf, state.params)
  params["embedding"]["table"] = params["embedding"]["table"][:, :8]
  with pytest.raises(ValueError, match=r"params\['embedding'\]\['table'\] is \(\(259, 8\)"):
    write_run(new_workdir(tmp_path / "run"), config, params, state.router_state, vocabulary)
  assert not (tmp_path / "run").exists()
