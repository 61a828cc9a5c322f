"""Whole runs: a checkpoint is of the model, not of the mesh; and what the mesh cannot hold is refused in one line."""

import jax
import numpy as np
import pytest

from moe.config import ConfigError
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import restore
from moe.parallel.mesh import MeshConfig, make_mesh
from moe.training.experiment import InitConfig, load_config
from moe.training.init import InitSource
from moe.training.metrics_file import read_metrics
from moe.training.setup import Setup
from moe.training.trainer import train
from tests.slow import slow
from tests.training.tiny import losses, tiny_mapping, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.jsonl")


def config(corpus, steps, **mesh):
  """Of a run whose routing group is the whole batch, which lies on all devices."""
  tree = tiny_mapping(corpus, streams=2, steps=steps, eval_batches=2)
  tree["data"]["batch_size"], tree["mesh"] = 8, mesh
  tree["model"]["vocab_size"] = 260
  tree["model"]["encoder"]["moe"]["num_experts"] = 8
  return load_config(tree)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
  """A run of six steps in which every row of the mesh is one device."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  train(config(corpus, 6), workdir)
  return workdir


def test_a_run_goes_on_on_another_mesh_as_if_it_had_not_changed(corpus, alone, tmp_path):
  workdir = tmp_path / "run"
  train(config(corpus, 2, expert=8, fsdp=True), workdir)
  train(config(corpus, 4, expert=2, model=2), workdir)
  train(config(corpus, 6, expert=4, fsdp=True), workdir)
  found, expected = losses(workdir), losses(alone)
  common = [key for key in expected if key in found]
  assert len(common) >= 7
  np.testing.assert_allclose([found[key] for key in common], [expected[key] for key in common], rtol=2e-5)


@pytest.mark.parametrize("mesh", [{"expert": 8}, {"expert": 4}, {"expert": 2, "model": 2}, {"fsdp": True}], ids=str)
def test_every_experts_weights_are_the_same_on_any_other_mesh(alone, mesh):
  reference, other = restore(alone, "latest"), restore(alone, "latest", MeshConfig(**mesh))
  assert other.mesh.size == 8
  jax.tree.map(np.testing.assert_array_equal, other.params, reference.params)
  experts = other.params["encoder"]["units"][0]["blocks"][1]["moe"]["experts"]["up"]
  assert experts.shape[1] == 8 and len({experts[0, index].tobytes() for index in range(8)}) == 8


@pytest.mark.parametrize("mesh", [{"expert": 4, "fsdp": True}, slow({"expert": 2, "model": 2})], ids=str)
def test_another_run_begins_with_these_weights_on_any_mesh(corpus, alone, mesh):
  """They are read straight into its shards; its optimizer's statistics are new, and divided as in any run."""
  settings = config(corpus, 6, **mesh)
  setup = Setup(settings, make_mesh(settings.mesh))
  state = setup.state_of(*InitSource(InitConfig(str(alone), "6")).restore(setup.abstract))
  reference = restore(alone, "6")
  jax.tree.map(np.testing.assert_array_equal, state.params, reference.params)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, setup.optimizer.init(reference.params))
  divided = jax.tree.map(lambda leaf, to: leaf.sharding.is_equivalent_to(to.sharding, leaf.ndim), state, setup.abstract)
  assert all(jax.tree.leaves(divided))


def test_evaluation_gives_the_same_on_any_mesh(corpus, alone):
  data = config(corpus, 6).data
  expected = evaluate(restore(alone, "latest"), data, "validation")
  found = evaluate(restore(alone, "latest", MeshConfig(expert=4, fsdp=True)), data, "validation")
  assert found["tokens"] == expected["tokens"]
  assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
  last = [record for record in read_metrics(alone / "metrics.jsonl") if record["kind"] == "validation"][-1]
  assert last["step"] == 6


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ({"expert": 3}, "config.mesh = '-1 x 3 x 1': expected data x expert x model to be the number of devices, 8"),
    ({"model": 4, "data": 2}, "config.model.num_heads = 2: expected a multiple of the mesh's model = 4"),
  ],
)
def test_what_the_mesh_cannot_hold_is_refused_before_anything_is_written(corpus, tmp_path, mesh, message):
  with pytest.raises(ConfigError) as error:
    train(config(corpus, 2, **mesh), tmp_path / "run")
  assert str(error.value) == message
  assert not (tmp_path / "run").exists()


def test_experts_and_rows_must_be_multiples_of_their_axes(corpus, tmp_path):
  tree = tiny_mapping(corpus) | {"mesh": {"expert": 8}}
  with pytest.raises(
    ConfigError, match=r"config.model.encoder.moe.num_experts = 4: expected a multiple of the mesh's expert = 8"
  ):
    train(load_config(tree), tmp_path / "run")
  tree["mesh"] = {"expert": 4}
  with pytest.raises(ConfigError, match=r"expected rows per micro-batch to be a multiple of data x expert = 8"):
    train(load_config(tree), tmp_path / "run")


def test_soft_groups_must_lie_on_whole_devices_of_a_micro_batch(corpus, tmp_path):
  """Of 12 rows of 16 inputs each of 4 devices has 48 tokens: groups of 16 or 96 fit, of 64 or 32 do not."""
  tree = tiny_mapping(corpus, steps=2)
  tree["data"]["batch_size"], tree["mesh"] = 24, {"data": 2, "expert": 2, "model": 2}
  tree["train"]["accumulation"], tree["model"]["vocab_size"] = 2, 260
  router = tree["model"]["encoder"]["moe"]["router"] = {"name": "soft_moe"}
  for size in (16, 96):
    router["group_size"] = size
    load_config(tree).check_mesh(make_mesh(MeshConfig(2, 2, 2)))
  for size in (64, 32):
    router["group_size"] = size
    with pytest.raises(
      ConfigError, match=rf"config.model.encoder.moe.router.group_size = {size}: .* the 48 tokens of a"
    ):
      train(load_config(tree), tmp_path / "run")
  assert not (tmp_path / "run").exists()
