"""A run that begins from another run's checkpoint: what it takes, what it refuses, and that it needs it only once."""

import re
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from moe.config import ConfigError, Text, as_mapping, differences
from moe.data import make_vocabulary
from moe.evaluation.restore import restore
from moe.models import MoEConfig
from moe.parallel.mesh import make_mesh
from moe.routing import RouterConfig
from moe.training.checkpoint import Checkpoints
from moe.training.experiment import InitConfig, load_config
from moe.training.feed import describe, fingerprint
from moe.training.init import InitSource, inherit
from moe.training.metrics_file import read_metrics
from moe.training.optimization.parts import by_path
from moe.training.setup import Setup
from moe.training.state import stored_router_state
from moe.training.trainer import train
from moe.training.workdir import Workdir, WorkdirError
from tests.training.test_checkpoint import files_of, flip_a_bit, truncate
from tests.training.tiny import Interrupt, interrupt_after, losses, tiny_decoder, tiny_mapping


def pretraining(corpus):
  """Of a decoder whose router has a state that moves in training."""
  tree = tiny_mapping(corpus, steps=4, eval_every=2, eval_batches=1, checkpoint_every=2, keep=3)
  return tree | {"model": tiny_decoder(tree, {"name": "loss_free", "capacity_factor": 2.0})}


@pytest.fixture(scope="module")
def source(tmp_path_factory, corpus):
  """The workdir of a run with checkpoints at steps 2 and 4."""
  return train(load_config(pretraining(corpus)), tmp_path_factory.mktemp("source") / "run").workdir.root


def finetuning(corpus, source, step="best", model=None):
  """The tree of a config that leaves the model and the vocabulary to its source."""
  tree = tiny_mapping(corpus, steps=4, checkpoint_every=2, eval_every=4, eval_batches=1)
  data = {name: value for name, value in tree["data"].items() if name not in ("vocabulary", "extra_ids")}
  given = {} if model is None else {"model": model}
  del tree["model"]
  return tree | given | {"data": data, "seed": 11, "init": {"workdir": str(source), "step": step}}


def resolved(corpus, source, folder=None, **fields):
  return load_config(inherit(finetuning(corpus, source, **fields), folder))


def assert_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def content_of(folder):
  return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


# What it takes.


def test_parameters_and_router_state_are_the_sources_and_optimizer_and_step_are_new(source, corpus):
  config = resolved(corpus, source)
  setup = Setup(config, make_mesh())
  state = setup.state_of(*InitSource(InitConfig(str(source), "4")).restore(setup.abstract))
  trained = restore(source, "4")
  assert np.any(jax.tree.leaves(trained.router_state)[0])
  assert_equal((state.params, state.router_state), (trained.params, trained.router_state))
  assert_equal(state.opt_state, setup.optimizer.init(state.params))
  assert state.step == 0


@pytest.fixture(scope="module")
def begun(source, corpus, tmp_path_factory):
  """The workdir of an uninterrupted run from `source`, and what the files of the source were before it."""
  folder, before = tmp_path_factory.mktemp("begun") / "run", content_of(source)
  train(resolved(corpus, source, folder), folder)
  return folder, before


def test_a_run_begins_at_step_0_from_the_best_checkpoint_and_records_which_that_was(source, begun):
  best = min((loss, step) for (kind, step), loss in losses(source).items() if kind == "validation")[1]
  assert Workdir(begun[0]).load_config().init == InitConfig(str(source), str(best))
  assert list(losses(begun[0])) == [*(("train", step) for step in (1, 2, 3, 4)), ("validation", 4)]
  assert losses(begun[0])["train", 1] < losses(source)["train", 1] - 0.5


@pytest.mark.parametrize(("step", "number"), [("latest", "4"), ("2", "2")])
def test_the_step_may_be_chosen(source, corpus, tmp_path, step, number):
  assert resolved(corpus, source, tmp_path, step=step).init == InitConfig(str(source), number)


def test_the_source_is_left_as_it_was_to_the_byte(source, begun):
  assert content_of(source) == begun[1]


# What it no longer needs.


def test_a_run_resumes_bit_for_bit_when_its_source_is_gone(source, corpus, begun, tmp_path, capsys):
  """By the same command: the step is still called "best", and the model is not in the config."""
  gone, folder = shutil.copytree(source, tmp_path / "gone"), tmp_path / "run"
  with pytest.raises(Interrupt):
    train(resolved(corpus, gone, folder), folder, [interrupt_after(3)])
  assert f"starting from {gone}/checkpoints/{Workdir(folder).load_config().init.step}\n" in capsys.readouterr().out
  shutil.rmtree(gone)
  train(resolved(corpus, gone, folder), folder)
  assert f"resuming from {folder}/checkpoints/2\n" in capsys.readouterr().out
  assert losses(folder) == losses(begun[0])
  assert_equal(restore(folder, "latest").params, restore(begun[0], "latest").params)


def test_a_run_that_is_held_to_its_source_has_no_divergence_at_first_and_needs_it_to_resume(source, corpus, tmp_path):
  """A resumed run compares itself with the source, not with what it resumes from: its records are the same."""
  gone, whole, folder = shutil.copytree(source, tmp_path / "gone"), tmp_path / "whole", tmp_path / "run"

  def held(folder):
    tree = finetuning(corpus, gone)
    return load_config(inherit(tree | {"init": tree["init"] | {"kl_loss": 0.5}}, folder))

  train(held(whole), whole)
  records = [record for record in read_metrics(whole / "metrics.jsonl") if record["kind"] == "train"]
  costs = [record["auxiliary_loss"] for record in records]
  assert costs[0] == pytest.approx(0, abs=1e-6) and min(costs[1:]) > 1e-6
  with pytest.raises(Interrupt):
    train(held(folder), folder, [interrupt_after(3)])
  train(held(folder), folder)
  assert losses(folder) == losses(whole)
  assert_equal(restore(folder, "latest").params, restore(whole, "latest").params)
  shutil.rmtree(gone)
  with pytest.raises(
    ConfigError, match=r"^config\.init\.workdir = '.*gone': expected the folder of a run; there is no"
  ):
    train(held(folder), folder)


def test_until_its_first_checkpoint_a_run_needs_its_source(source, corpus, tmp_path):
  gone, folder = shutil.copytree(source, tmp_path / "gone"), tmp_path / "run"
  with pytest.raises(Interrupt):
    train(resolved(corpus, gone, folder), folder, [interrupt_after(1)])
  shutil.rmtree(gone)
  with pytest.raises(ConfigError, match=r"^config\.init\.workdir = '.*gone': expected the folder of a run: "):
    resolved(corpus, gone, folder)


def test_a_workdir_keeps_to_the_source_it_began_from(source, corpus, begun, tmp_path):
  other = shutil.copytree(source, tmp_path / "other")
  with pytest.raises(WorkdirError, match=r"another config: config\.init\.workdir was '.*run', is '.*other'; choose"):
    train(resolved(corpus, other, begun[0]), begun[0])
  with pytest.raises(WorkdirError, match=r"another config: config\.init was \{.*\}, is None; choose another"):
    train(load_config(as_mapping(resolved(corpus, source, begun[0])) | {"init": None}), begun[0])


# What is frozen.


def test_what_is_frozen_is_the_sources_to_the_bit_after_training_and_resuming(source, corpus, tmp_path, capsys):
  """The routers, with the biases that they move themselves, and the embedding; all else has moved."""
  tree = finetuning(corpus, source)
  tree["optimizer"] = tree["optimizer"] | {"frozen": ["router", "^embedding/"], "weight_decay": 0.1}
  config = load_config(inherit(tree, tmp_path))
  with pytest.raises(Interrupt):
    train(config, tmp_path, [interrupt_after(3)])
  size, frozen = sum(leaf.size for leaf in jax.tree.leaves(restore(source).params)), 259 * 16 + 16 * 4
  parts = f"{size:,} parameters ({size - frozen:,} trained, {frozen:,} frozen) on 1 device"
  assert parts in capsys.readouterr().err
  train(config, tmp_path)
  before, after = restore(source, config.init.step), restore(tmp_path, "4")
  assert_equal(after.router_state, before.router_state)
  old, new = by_path(before.params), by_path(after.params)
  same = {path for path in old if np.array_equal(old[path], new[path])}
  assert same == {"embedding/table", "decoder/units/0/blocks/1/moe/router/kernel"}


# What is handed down.


def test_the_model_and_the_vocabulary_are_the_sources_under_what_is_given(source, corpus):
  model = {"dropout": 0.1, "expert_dropout": 0.4, "auxiliary_losses": "mean"}
  model["decoder"] = {"moe": {"router": {"capacity_factor": 3.0}, "gate_scale": Text("2")}}
  config = resolved(corpus, source, model=model)
  expected = {
    "config.dropout": (0.0, 0.1),
    "config.expert_dropout": (None, 0.4),
    "config.auxiliary_losses": ("sum", "mean"),
    "config.decoder.moe.router.capacity_factor": (2.0, 3.0),
    "config.decoder.moe.gate_scale": (1.0, 2.0),
  }
  assert differences(as_mapping(load_config(pretraining(corpus)).model), as_mapping(config.model)) == expected
  assert (config.data.vocabulary, config.data.extra_ids) == ("bytes", 0)


def test_a_config_file_gives_the_same_as_its_mapping(source, corpus):
  tree = finetuning(corpus, source, model={"dropout": 0.5})
  assert inherit(ConfigDict(tree)) == inherit(tree)


def test_a_choice_of_another_name_begins_with_its_own_defaults(source, corpus):
  config = resolved(corpus, source, model={"decoder": {"moe": {"router": {"name": "token_choice", "top_k": 1}}}})
  assert config.model.decoder.moe == MoEConfig(num_experts=4, router=RouterConfig.choices["token_choice"](top_k=1))


def test_without_a_source_a_config_is_as_it_was(corpus):
  tree = tiny_mapping(corpus)
  assert inherit(tree) == tree
  assert inherit(tree | {"init": None}) == tree | {"init": None}


@pytest.mark.parametrize(
  ("model", "message"),
  [
    (
      {"decoder": {"moe": {"gate_scale": 2.0}}},
      r"^config\.model\.decoder\.moe\.gate_scale = 2\.0: .* in config\.init\.workdir, whose decoder\.moe is None",
    ),
    ({"name": "decoder"}, r"^config\.model\.name = 'decoder': expected 'encoder_decoder', as in config\.init\.workdir"),
    ({"encoder": {"moe": {"dropout": 0.1}}}, r"^config\.model\.encoder\.moe\.dropout = 0\.1: unknown field"),
    ({"dropout": 2.0}, r"^config\.model\.dropout = 2\.0: expected at least 0"),
  ],
)
def test_a_field_that_the_sources_model_cannot_have_is_named(corpus, tmp_path, model, message):
  """Of a source without experts in its decoder."""
  config = load_config(tiny_mapping(corpus))
  Workdir(tmp_path).claim(config)
  with pytest.raises(ConfigError, match=message):
    resolved(corpus, tmp_path, model=model)


# What is refused, before anything is written.


def refused(config, folder):
  """The message, of one line; nothing is written."""
  with pytest.raises(ConfigError) as caught:
    train(config, folder)
  assert "\n" not in str(caught.value) and not folder.exists()
  return str(caught.value)


def test_all_that_does_not_fit_is_named_in_one_error(source, corpus, tmp_path):
  model = {"relative_bias": "per_layer", "decoder": {"moe": {"num_experts": 8}}, "vocab_size": 300}
  tree = finetuning(corpus, source, model=model)
  tree["data"]["extra_ids"] = 7
  message = refused(load_config(inherit(tree)), tmp_path / "run")
  first, *parts = message.split("; ")
  assert first == f"config.init.workdir = '{source}': expected what fits this config's model and data"
  unit = "decoder/units/0/blocks"
  assert parts == [
    f"it lacks: {unit}/0/bias/table float32[1, 32, 2], {unit}/1/bias/table float32[1, 32, 2]",
    "it has besides: decoder/bias/table float32[32, 2]",
    f"of other shapes: {unit}/1/moe/experts/down float32[1, 4, 16, 32] for float32[1, 8, 16, 32], "
    f"{unit}/1/moe/experts/up float32[1, 4, 16, 32] for float32[1, 8, 16, 32], "
    f"{unit}/1/moe/router/kernel float32[1, 16, 4] for float32[1, 16, 8], "
    "embedding/table float32[259, 16] for float32[300, 16], "
    f"{unit}/1/moe/router/bias float32[1, 4] for float32[1, 8]",
    "of another vocabulary: 'bytes' (259 tokens) for 'bytes' (266)",
  ]


def test_a_routers_state_must_fit_as_parameters_do(source, corpus, tmp_path):
  router = {"name": "token_choice", "capacity_factor": 2.0}
  message = refused(resolved(corpus, source, model={"decoder": {"moe": {"router": router}}}), tmp_path / "run")
  assert message.endswith("; it has besides: decoder/units/0/blocks/1/moe/router/bias float32[1, 4]")


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_a_damaged_checkpoint_is_refused(source, corpus, tmp_path, damage):
  copied = shutil.copytree(source, tmp_path / "copied")
  damage(files_of(copied / "checkpoints" / "4" / "model" / "d")[-1])
  message = refused(resolved(corpus, copied, step="4"), tmp_path / "run")
  assert re.match(r"config\.init\.workdir = '.*': expected checkpoints that can be read: checkpoint 4 cannot", message)


def test_a_checkpoint_without_its_description_is_refused(source, corpus, tmp_path):
  copied = shutil.copytree(source, tmp_path / "copied")
  (copied / "checkpoints" / "4" / "model" / "_METADATA").unlink()
  assert "checkpoint 4 cannot be read" in refused(resolved(corpus, copied, step="4"), tmp_path / "run")


def test_a_router_may_not_begin_from_another_file(corpus, tmp_path):
  """The table of a source need not be there any more, or may have moved; one of other content does not fit."""
  for name, first in (("a", 0), ("b", 1)):
    np.savez(tmp_path / f"{name}.npz", buckets=(np.arange(259) + first) % 4)
  router = {"name": "hash", "function": "table", "table": str(tmp_path / "a.npz")}
  config = load_config(pretraining(corpus) | {"model": tiny_decoder(tiny_mapping(corpus), router)})
  source = untrained(config, tmp_path / "source")
  (tmp_path / "a.npz").rename(tmp_path / "c.npz")

  def begin(**router):
    tree = inherit(finetuning(corpus, source, model={"decoder": {"moe": {"router": router}}}))
    tree["data"]["source"] = {"name": "text", "path": str(tmp_path / "none")}
    return refused(load_config(tree), tmp_path / "run")

  assert begin(table=str(tmp_path / "b.npz")).endswith("; with other content: the files of its routers")
  for fits in ({}, {"table": str(tmp_path / "c.npz")}):
    assert begin(**fits).startswith("config.data.source.path")


def untrained(config, folder):
  """The workdir of a run with a checkpoint at step 0."""
  vocabulary, workdir = make_vocabulary(config.data), Workdir(folder)
  stored = stored_router_state(config.model, vocabulary.fingerprint)
  checkpoints = Checkpoints(workdir.checkpoints)
  about = {"config": as_mapping(config), "vocabulary": describe(vocabulary), "router_files": fingerprint(stored)}
  checkpoints.save(Setup(config, make_mesh()).first_state(stored), {}, about)
  checkpoints.close()
  workdir.claim(config)
  return folder
