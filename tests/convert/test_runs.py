"""Runs made of runs: what they hold, how training resumes from them, and what is refused before anything is read."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from moe.config import ConfigError, Text
from moe.convert.layers import split_layers
from moe.convert.new_config import changed_config, dense_config, upcycled_config
from moe.convert.new_run import new_workdir, write_run
from moe.convert.old_run import read_run, setup_of
from moe.convert.runs import average_runs, merge_run, prune_run, upcycle_run
from moe.data import load_vocabulary
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import kept_steps, restore
from moe.models.placement import Last, Listed
from moe.training.experiment import InitConfig, load_config
from moe.training.metrics_file import read_metrics
from moe.training.state import stored_router_state
from moe.training.trainer import train
from moe.training.workdir import Workdir
from tests.convert.test_upcycling import assert_equal
from tests.forked import Forked
from tests.slow import slow
from tests.training.pictures import vision_mapping, write_pictures
from tests.training.tiny import tiny_mapping, tiny_stack

CHOICE = {"name": "expert_choice", "capacity_factor": 2.0}
# Every expert of two takes every token, and a token's two gates sum to 1.
ALL_CHOSEN = [
  ("model.encoder.moe.num_experts", 2),
  ("model.encoder.moe.router", CHOICE | {"renormalize": True}),
]


def dense_mapping(corpus, **train):
  mapping = tiny_mapping(corpus, **({"keep": 3} | train))
  mapping["model"]["encoder"] = tiny_stack()
  return mapping


def untrained(mapping, folder, seed=0):
  """A run at step 0, as a seed gives it."""
  config = load_config(mapping | {"seed": seed})
  state = setup_of(config).first_state(stored_router_state(config.model, ""))
  write_run(new_workdir(folder), config, state.params, state.router_state, load_vocabulary("bytes", 0))
  return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  """A dense run of twelve steps, with checkpoints at 4, 8 and 12."""
  folder = tmp_path_factory.mktemp("trained") / "run"
  train(load_config(dense_mapping(corpus, eval_every=4)), folder)
  return folder


@pytest.fixture(scope="module")
def upcycled(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("upcycled") / "run"
  upcycle_run(trained, "8", folder, ALL_CHOSEN)
  return folder


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
  return untrained(dense_mapping(corpus), tmp_path_factory.mktemp("dense") / "run")


@pytest.fixture(scope="module")
def sparse(corpus, tmp_path_factory):
  """Four experts in one layer of the encoder."""
  mapping = tiny_mapping(corpus)
  mapping["model"]["encoder"]["moe"]["feed_forward"] = "geglu"
  return untrained(mapping, tmp_path_factory.mktemp("sparse") / "run")


def losses(folder, kind):
  return {each["step"]: each["loss"] for each in read_metrics(folder / "metrics.jsonl") if each["kind"] == kind}


def test_an_upcycled_run_begins_at_the_dense_runs_step_and_with_its_routers_of_a_fresh_model(trained, upcycled):
  config = Workdir(upcycled).load_config()
  run, source = read_run(upcycled, "latest"), read_run(trained, "8")
  assert run.trained.step == 8 and run.position == source.position and run.about["data"] == source.about["data"]
  assert config.model.encoder.moe.feed_forward == "geglu"
  fresh = setup_of(config).first_state({}).params["encoder"]
  ours, theirs = (split_layers(each, (False, True)) for each in (run.state.params["encoder"], fresh))
  assert_equal(ours[1]["moe"]["router"], theirs[1]["moe"]["router"])


@pytest.mark.parametrize(
  "fields",
  [
    [("model.encoder.moe", Text("{'num_experts': 2, 'router': 'expert_choice'}"))],
    [("model.encoder", Text("{'layers': 2, 'moe': {'num_experts': 2, 'router': 'expert_choice'}}"))],
    [("model.encoder.moe", {"num_experts": 2}), ("model.encoder.moe.router", Text("expert_choice"))],
  ],
)
def test_experts_given_as_a_whole_section_have_the_dense_networks_activation_too(fields, corpus):
  """It is not the one that experts have by default."""
  new = upcycled_config(load_config(dense_mapping(corpus)), fields)
  assert new.model.encoder.moe.feed_forward == new.model.feed_forward == "geglu"


def test_a_vision_transformer_has_the_same_loss_upcycled_and_merged_again(tmp_path):
  pictures = write_pictures(tmp_path / "pictures")
  train(load_config(vision_mapping(pictures, steps=4, eval_every=4)), tmp_path / "dense")
  upcycle_run(tmp_path / "dense", "latest", tmp_path / "sparse", ALL_CHOSEN)
  merge_run(tmp_path / "sparse", "latest", tmp_path / "merged", [])
  runs = {name: restore(tmp_path / name) for name in ("dense", "sparse", "merged")}
  assert_equal(runs["merged"].params, runs["dense"].params)
  sparse = evaluate(runs["sparse"], runs["sparse"].config.data, "validation")
  expected = losses(tmp_path / "dense", "validation")[4]
  assert sparse["loss"] == pytest.approx(expected, rel=1e-5) and sparse["encoder/layer_0/load_max"] > 0


def test_training_resumes_from_it_with_the_dense_runs_loss_and_data(trained, upcycled, corpus, tmp_path):
  """Its validation at step 8 and its loss in step 9, of the same batch, are the dense run's; then the two part."""
  tree = json.loads((upcycled / "config.json").read_text())
  train(load_config(tree), upcycled)
  for kind, step in (("validation", 8), ("train", 9)):
    assert losses(upcycled, kind)[step] == pytest.approx(losses(trained, kind)[step], rel=1e-5)
  assert list(losses(upcycled, "train")) == [9, 10, 11, 12]
  assert losses(upcycled, "train")[12] != pytest.approx(losses(trained, "train")[12], rel=1e-5)


def test_its_experts_have_the_dense_networks_statistics_unless_these_are_reset(trained, upcycled, tmp_path):
  """With other batches it begins with the first of its data, too."""
  upcycle_run(trained, "8", tmp_path / "reset", [*ALL_CHOSEN, ("data.batch_size", 2)], fresh_optimizer=True)
  assert read_run(tmp_path / "reset", "8").position is None
  scales = [
    split_layers(read_run(folder, "8").state.opt_state[1]["encoder"], has_experts)[1]  # after clipping
    for folder, has_experts in ((trained, (False,) * 2), (upcycled, (False, True)), (tmp_path / "reset", (False, True)))
  ]
  second_moment, reused = scales[0]["feed_forward"]["up"][0].v, scales[1]["moe"]["experts"]["up"][0]
  assert np.abs(second_moment).min() > 0
  assert_equal(reused.v, np.stack([second_moment] * 2))
  assert reused.count.tolist() == [8, 8]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(scales[2]))


def test_merged_it_is_the_dense_run_again_bit_for_bit(dense, tmp_path):
  upcycle_run(dense, "latest", tmp_path / "sparse", ALL_CHOSEN)
  merge_run(tmp_path / "sparse", "latest", tmp_path / "merged", [])
  assert_equal(restore(tmp_path / "merged").params, restore(dense).params)
  assert Workdir(tmp_path / "merged").load_config().model == Workdir(dense).load_config().model


def test_the_average_of_two_checkpoints_is_numpys_and_all_else_the_last_ones(trained, tmp_path):
  average_runs([trained], ["4", "12"], tmp_path / "mean", [])
  assert kept_steps(tmp_path / "mean") == [12]
  run, first, last = read_run(tmp_path / "mean", "latest"), restore(trained, "4"), read_run(trained, "12")
  expected = jax.tree.map(
    lambda a, b: ((np.float64(a) + np.float64(b)) / 2).astype(np.float32), first.params, last.state.params
  )
  assert_equal(run.state.params, expected)
  assert run.position == last.position


def test_runs_of_one_model_are_averaged_too(corpus, dense, tmp_path):
  other = untrained(dense_mapping(corpus), tmp_path / "other", seed=1)
  average_runs([dense, other], ["latest"], tmp_path / "mean", [])
  one, two, mean = (restore(each).params["embedding"]["table"] for each in (dense, other, tmp_path / "mean"))
  np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6)
  assert (one != two).any()


def test_a_vocabulary_is_the_same_by_any_name(corpus, tmp_path):
  (folder := tmp_path / "elsewhere").mkdir()
  path = folder / "v.model"
  shutil.copyfile("configs/vocabularies/english_1k.model", path)
  runs = []
  for name in ("configs/vocabularies/english_1k.model", str(path)):
    mapping = dense_mapping(corpus)
    mapping["data"]["vocabulary"], mapping["model"]["vocab_size"] = name, 1024
    runs.append(untrained(mapping, tmp_path / f"run-{len(runs)}"))
  average_runs(runs, ["latest"], tmp_path / "mean", [])
  assert kept_steps(tmp_path / "mean") == [0]


@pytest.mark.parametrize("keep", [slow(2), 1])
def test_a_pruned_run_has_the_experts_that_validation_uses_most(sparse, tmp_path, keep):
  prune_run(sparse, "latest", tmp_path / "pruned", [], keep=keep, batches=1)
  before, after = restore(sparse), restore(tmp_path / "pruned")
  load = evaluate(before, before.config.data, "validation", 1)["encoder/layer_0/load"]
  most = sorted(sorted(range(4), key=lambda expert: -load[expert])[:keep])
  old = split_layers(before.params["encoder"], (False, True))[1]["moe"]
  new = split_layers(after.params["encoder"], after.config.model.encoder.has_experts)[1]
  if keep == 1:
    assert after.config.model.encoder.moe is None
    assert_equal(new["feed_forward"]["down"], old["experts"]["down"][most[0]].T)
  else:
    assert after.config.model.encoder.moe.num_experts == 2
    assert_equal(new["moe"]["experts"]["up"], old["experts"]["up"][np.array(most)])
    assert_equal(new["moe"]["router"]["kernel"], old["router"]["kernel"][:, np.array(most)])
  assert evaluate(after, after.config.data, "validation", 1)["loss"] > 0


def test_use_is_counted_over_other_data_where_they_are_given(corpus, tmp_path, capsys):
  """As for a run that was converted, which has none."""
  mapping = tiny_mapping(tmp_path / "none.jsonl")
  source = untrained(mapping, tmp_path / "source")
  with pytest.raises(ConfigError, match=r"none.jsonl': expected to match at least one file"):
    prune_run(source, "latest", tmp_path / "pruned", [], keep=2, batches=1)
  prune_run(source, "latest", tmp_path / "pruned", [("data.source.path", str(corpus))], keep=2, batches=1)
  assert "encoder/layer_0: experts " in capsys.readouterr().out


def test_a_run_made_of_one_that_began_from_another_begins_with_its_own_checkpoint(dense):
  old = dataclasses.replace(Workdir(dense).load_config(), init=InitConfig("runs/elsewhere"))
  assert changed_config(old, []) == dataclasses.replace(old, init=None)


def test_placement_and_experts_can_be_given_together(dense):
  old = Workdir(dense).load_config()
  fields = [*ALL_CHOSEN, ("model.encoder.moe.placement", {"name": "listed", "layers": [0]})]
  moe = upcycled_config(old, fields).model.encoder.moe
  assert moe.placement == Listed((0,)) and moe.feed_forward == "geglu"


def test_parameters_to_be_frozen_that_are_no_longer_there_are_refused(sparse):
  old = Workdir(sparse).load_config()
  old = dataclasses.replace(old, optimizer=dataclasses.replace(old.optimizer, frozen=("router",)))
  with pytest.raises(ConfigError, match=r"config.optimizer.frozen\[0\] = 'router': expected to be found"):
    dense_config(old, [])
  assert dense_config(old, [("optimizer.frozen", [])]).model.encoder.moe is None


def test_the_command_says_how_to_train_the_result_further(dense, tmp_path):
  options = ("num_experts=3", "router.name=expert_choice", "placement.name=last", "placement.n=1")
  fields = [f"--config.model.encoder.moe.{option}" for option in options] + ["--config.train.steps=20"]
  with Forked("moe.convert.__main__") as convert:
    answer = convert.run("upcycle", f"--from={dense}", f"--workdir={tmp_path}/run", "--noise=0.1", *fields)
  assert answer.code == 0, answer.error
  assert f"written to {tmp_path}/run at step 0" in answer.out
  assert f"python -m moe.train --config {tmp_path}/run/config.json --workdir {tmp_path}/run\n" in answer.out
  moe = Workdir(tmp_path / "run").load_config().model.encoder.moe
  assert (moe.num_experts, moe.router.name, moe.placement) == (3, "expert_choice", Last(1))
