"""Whole runs on one host: what they write, and that nothing is lost when they end early. Tests act through hooks."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError
from moe.data import DataError
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import restore
from moe.evaluation.summary import sample_lines
from moe.training import setup, trainer
from moe.training.checkpoint import CheckpointError, Checkpoints
from moe.training.experiment import load_config
from moe.training.feed import join_positions
from moe.training.hooks import TrainingStopped
from moe.training.metrics_file import MetricsWriter, read_metrics
from moe.training.trainer import train
from moe.training.workdir import WorkdirError
from tests.convert.test_runs import untrained
from tests.slow import slow
from tests.training.test_checkpoint import full_disk
from tests.training.tiny import Interrupt, changed, interrupt_after, tiny_config, tiny_decoder, tiny_mapping, tiny_stack


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
  """An uninterrupted run."""
  return train(tiny_config(corpus), tmp_path_factory.mktemp("whole") / "run")


def losses(workdir, kind="train"):
  return {
    record["step"]: record["loss"] for record in read_metrics(workdir / "metrics.jsonl") if record["kind"] == kind
  }


def test_a_run_learns_validates_and_keeps_its_checkpoints(whole):
  root = whole.workdir.root
  curve = losses(root)
  assert list(curve) == list(range(1, 13))
  assert curve[12] < curve[1] - 1
  assert list(losses(root, "validation")) == [6, 12]
  assert whole.finished and whole.step == 12 and whole.checkpoint == root / "checkpoints" / "12"
  record = whole.train
  assert record["gradient_norm"] > 0 and record["tokens_per_second"] > 0 and 0 <= record["input_wait"] <= 1
  assert sum(record["encoder/layer_0/experts_per_token"]) == pytest.approx(1)
  assert 4 * 8 < record["encoder/tokens"] <= 4 * 16 and "decoder/tokens" not in record  # of stacks with experts


def test_a_checkpoint_evaluates_to_what_validation_reported(whole):
  trained = restore(whole.workdir.root, "12")
  found = evaluate(trained, trained.config.data, "validation", batches=2)
  assert found["loss"] == pytest.approx(whole.validation["loss"], rel=1e-6)
  assert found["bits_per_byte"] == pytest.approx(whole.validation["bits_per_byte"], rel=1e-6)


@pytest.mark.parametrize("step", [slow(3), 5, slow(10)])
def test_a_run_that_was_cut_off_resumes_with_the_losses_of_one_that_was_not(whole, corpus, tmp_path, step):
  with pytest.raises(Interrupt):
    train(tiny_config(corpus), tmp_path, [interrupt_after(step)])
  train(tiny_config(corpus), tmp_path)
  assert losses(tmp_path) == losses(whole.workdir.root)
  assert losses(tmp_path, "validation") == losses(whole.workdir.root, "validation")


def records(workdir):
  """Training records by step, without what depends on the clock."""
  timed = ("seconds", "tokens_per_second", "input_wait")
  found = [record for record in read_metrics(workdir / "metrics.jsonl") if record["kind"] == "train"]
  return {record["step"]: {k: v for k, v in record.items() if k not in timed} for record in found}


def test_records_are_means_over_the_steps_since_the_one_before(whole, corpus, tmp_path):
  train(tiny_config(corpus, log_every=5), tmp_path)
  found, steps = records(tmp_path), records(whole.workdir.root)
  assert list(found) == [5, 10, 12]
  for last, record in found.items():
    covered = [steps[step] for step in range({5: 1, 10: 6, 12: 11}[last], last + 1)]
    assert record["steps"] == len(covered) and record["learning_rate"] == covered[-1]["learning_rate"]
    for name in ("tokens", "target_tokens", "bytes"):
      assert record[name] == sum(step[name] for step in covered)
    for name, over in {"loss": "target_tokens", "bits_per_byte": "bytes", "gradient_norm": "steps"}.items():
      expected = np.average([step[name] for step in covered], weights=[step[over] for step in covered])
      assert record[name] == pytest.approx(expected, rel=1e-6), name
    low, high = (bound([step["encoder/layer_0/gate_entropy"] for step in covered]) for bound in (min, max))
    assert low < record["encoder/layer_0/gate_entropy"] < high
    assert sum(record["encoder/layer_0/load"]) == pytest.approx(1)


@pytest.mark.parametrize("step", [slow(3), 7])
def test_after_a_stop_between_two_records_they_are_those_of_a_run_that_was_not_stopped(corpus, tmp_path, step):
  train(tiny_config(corpus, log_every=5), tmp_path / "whole")
  assert not train(tiny_config(corpus, log_every=5), tmp_path / "cut", [signal_after(step)]).finished
  train(tiny_config(corpus, log_every=5), tmp_path / "cut")
  assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_the_first_step_is_shown_as_soon_as_it_is_done_whatever_log_every(corpus, tmp_path, capsys):
  shown = {}
  train(tiny_config(corpus, log_every=12), tmp_path, [lambda run, info: shown.update({info.step: capsys.readouterr()})])
  assert "step 1/12: loss" in shown[2].err
  assert not any("step " in text.err for step, text in shown.items() if 2 < step < 6)


def test_a_finished_run_does_nothing_more(whole, corpus):
  before = whole.workdir.metrics.read_bytes()
  again = train(tiny_config(corpus), whole.workdir.root)
  assert again.finished and again.validation["loss"] == whole.validation["loss"]
  assert whole.workdir.metrics.read_bytes() == before


def signal_after(step, number=signal.SIGTERM):
  """A hook that sends this process a signal, which the run notices after its next step."""

  def send(run, info):
    if info.step == step:
      os.kill(os.getpid(), number)

  return send


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns_and_the_run_can_be_resumed(whole, corpus, tmp_path, capsys, number):
  stopped = train(tiny_config(corpus), tmp_path, [signal_after(5, number)])
  assert not stopped.finished and stopped.checkpoint == tmp_path / "checkpoints" / str(stopped.step)
  assert stopped.step == 6
  assert "run the same command to resume" in capsys.readouterr().err
  assert train(tiny_config(corpus), tmp_path).finished
  assert losses(tmp_path) == losses(whole.workdir.root)


def test_a_validation_that_a_signal_prevented_is_made_up_for(whole, corpus, tmp_path):
  assert train(tiny_config(corpus), tmp_path, [signal_after(5)]).step == 6
  assert losses(tmp_path, "validation") == {}
  train(tiny_config(corpus), tmp_path)
  assert losses(tmp_path, "validation") == losses(whole.workdir.root, "validation")


def test_steps_and_validation_are_compiled_once_in_a_run(corpus, tmp_path):
  runs = []
  train(tiny_config(corpus), tmp_path, [lambda run, info: runs.append(run)])
  assert len(runs) == 12 and len({id(run) for run in runs}) == 1
  assert runs[0].train_step._cache_size() == 1 and runs[0].eval_step._cache_size() == 1


def test_hooks_are_called_after_every_step_and_are_told_what_is_due(corpus, tmp_path):
  """Validation every 6 steps, checkpoints every 4; the metrics of a step are logged when the next one has started."""
  seen, logged = [], []

  def watch(run, info):
    seen.append((info.step, info.validate, info.save, info.stop))
    logged.append(run.newest["train"].get("step", 0))

  train(tiny_config(corpus), tmp_path, [watch])
  assert seen == [(step, step in (6, 12), step in (4, 8, 12), False) for step in range(1, 13)]
  assert logged == [step if step in (4, 6, 8, 12) else step - 1 for step in range(1, 13)]


def test_a_hook_can_record_metrics_of_its_own(corpus, tmp_path):
  train(tiny_config(corpus, steps=3), tmp_path, [lambda run, info: run.record(info.step, "mine", {"loss": 0.5})])
  assert losses(tmp_path, "mine") == {1: 0.5, 2: 0.5, 3: 0.5}


def test_old_parameters_are_not_kept_in_memory(corpus, tmp_path):
  """Each step consumes the arrays that it is given, also those of a restored checkpoint."""
  train(tiny_config(corpus, steps=4), tmp_path)
  seen = []

  def consumed(run, info):
    seen.append(info.state.params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen[:-1]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(seen[-1]))

  train(tiny_config(corpus, steps=7), tmp_path, [consumed])
  assert len(seen) == 3


def poison(monkeypatch, at):
  """From step `at` on, the loss weights are infinite, and with them the loss."""
  put = trainer.put_batch
  seen = []

  def poisoned(mesh, batch):
    seen.append(None)
    if len(seen) >= at:
      batch = batch | {"loss_weights": np.full_like(batch["loss_weights"], np.inf)}
    return put(mesh, batch)

  monkeypatch.setattr(trainer, "put_batch", poisoned)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_report(corpus, tmp_path, monkeypatch):
  poison(monkeypatch, at=6)
  with pytest.raises(TrainingStopped) as error:
    train(tiny_config(corpus), tmp_path)
  message = str(error.value)
  assert message.startswith("step 6: loss nan") and "encoder/layer_0/load_max = " in message
  assert message.endswith(f"the last good checkpoint is {tmp_path / 'checkpoints' / '4'}")
  assert read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == "nan"


def test_after_a_loss_that_is_not_finite_no_checkpoint_is_bad(own_programs, corpus, tmp_path, monkeypatch):
  """The loss of step 4 is fine and its checkpoint due, but its update is not."""
  update = setup.make_train_step

  def breaking(*args, **options):
    step = update(*args, **options)

    def broken(state, batch, run):
      state, metrics = step(state, batch, run)
      bad = jax.tree.map(lambda x: x * jnp.inf, state.params)
      return (dataclasses.replace(state, params=bad), metrics) if int(state.step) == 4 else (state, metrics)

    return broken

  monkeypatch.setattr(setup, "make_train_step", breaking)
  with pytest.raises(TrainingStopped, match="the state at step 4 is not finite and was not saved; no checkpoint"):
    train(tiny_config(corpus), tmp_path)
  checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
  assert checkpoints.latest() is None


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(corpus, tmp_path):
  """It is full between two records, so that the checkpoint is what fails."""
  with contextlib.ExitStack() as until_the_end:

    def fill(run, info):
      run.checkpoints.wait()
      if info.step == 7:
        until_the_end.enter_context(full_disk(1000))

    with pytest.raises(CheckpointError, match=r"checkpoint 8 .*/checkpoints/4$"):
      train(tiny_config(corpus, log_every=12), tmp_path, [fill])
  assert restore(tmp_path, "latest").step == 4


def test_errors_show_before_anything_is_written(corpus, tmp_path):
  mapping = tiny_mapping(corpus)
  mapping["model"]["vocab_size"] = 200
  with pytest.raises(
    ConfigError, match=r"vocab_size = 200: expected at least 259, the tokens of the data's vocabulary"
  ):
    train(load_config(mapping), tmp_path / "a")
  empty = tmp_path / "empty.jsonl"
  empty.write_text("")
  with pytest.raises(DataError, match=r"empty\.jsonl"):
    train(tiny_config(empty), tmp_path / "b")
  of_train = tmp_path / "train.jsonl"
  of_train.write_text(corpus.read_text().replace("{", '{"split": "train", '))
  with pytest.raises(DataError, match="split 'validation': holds no example"):
    train(tiny_config(of_train), tmp_path / "c")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "train.jsonl"]


def test_metrics_that_cannot_be_written_stop_the_run_with_the_last_good_checkpoint(corpus, tmp_path, monkeypatch):
  write = MetricsWriter.write

  def failing(writer, step, kind, values):
    if step == 6:
      raise OSError(28, "No space left on device")
    write(writer, step, kind, values)

  monkeypatch.setattr(MetricsWriter, "write", failing)
  with pytest.raises(TrainingStopped, match=r"metrics\.jsonl could not be written: No space .*/checkpoints/4$"):
    train(tiny_config(corpus), tmp_path)


def test_an_evaluation_that_fails_costs_no_step_and_is_made_up_for(whole, corpus, tmp_path, monkeypatch, capsys):
  seen, validate = [], trainer.validate

  def failing(run, info):
    if info.validate:
      seen.append(info.step)
      raise RuntimeError("out of memory")

  monkeypatch.setattr(trainer, "validate", failing)
  for _ in range(2):
    with pytest.raises(RuntimeError, match="out of memory"):
      train(tiny_config(corpus, checkpoint_every=12), tmp_path)
    assert capsys.readouterr().err.endswith(
      f"evaluation at step 6 failed; the last good checkpoint is {tmp_path}/checkpoints/6\n"
    )
  assert seen == [6, 6] and set(losses(tmp_path)) == set(range(1, 7))
  monkeypatch.setattr(trainer, "validate", validate)
  assert train(tiny_config(corpus, checkpoint_every=12), tmp_path).finished
  assert losses(tmp_path) == losses(whole.workdir.root)
  assert losses(tmp_path, "validation") == losses(whole.workdir.root, "validation")


def test_a_step_that_does_not_fit_the_memory_is_one_line_that_says_what_would_help(corpus, tmp_path):
  def full(run, info):
    if info.step == 6:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\n[hint]")

  with pytest.raises(TrainingStopped) as stopped:
    train(tiny_config(corpus), tmp_path, [full])
  said = str(stopped.value)
  assert said.startswith(
    "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.; make config.data.batch_size = 4 smaller"
  )
  assert said.endswith(f"the last good checkpoint is {tmp_path}/checkpoints/4")


def test_a_run_with_another_vocabulary_is_not_resumed(whole, corpus, monkeypatch):
  describe = trainer.describe
  monkeypatch.setattr(trainer, "describe", lambda vocabulary: describe(vocabulary) | {"fingerprint": "other"})
  with pytest.raises(WorkdirError, match="vocabulary 'bytes' is not the one"):
    train(tiny_config(corpus), whole.workdir.root)


def test_a_leaking_run_says_so_everywhere(corpus, tmp_path, capsys):
  mapping = tiny_mapping(corpus, steps=2, eval_every=2)
  mapping["model"] = tiny_decoder(mapping, {"name": "expert_choice"}, allow_future_leakage=True)
  summary = train(load_config(mapping), tmp_path)
  assert summary.future_leakage
  assert all(record["future_leakage"] for record in read_metrics(summary.workdir.metrics))
  shown = capsys.readouterr().err
  assert shown.count("loss") == shown.count("loss (future leakage)") > 0


@pytest.mark.parametrize(
  "decoder",
  [slow(tiny_stack({"name": "base"})), tiny_stack() | {"depth": {"capacity": 0.25}}],
  ids=["router", "depth"],
)
def test_a_run_that_sees_the_future_in_training_alone_says_so_of_training_alone(corpus, tmp_path, capsys, decoder):
  mapping = tiny_mapping(corpus, steps=2, eval_every=2)
  mapping["model"] = tiny_decoder(mapping, decoder=decoder, allow_future_leakage=True)
  config = load_config(mapping)
  summary = train(config, tmp_path)
  assert not summary.future_leakage
  marked = {record["kind"]: "future_leakage" in record for record in read_metrics(summary.workdir.metrics)}
  assert marked == {"train": True, "validation": False}
  shown = capsys.readouterr().err.splitlines()
  assert [line for line in shown if "validation" in line and "leakage" in line] == []
  assert [line for line in shown if "tokens/s" in line and "loss (future leakage)" not in line] == []
  assert sample_lines(config, summary)[0].startswith("sample at temperature")
  for record in (summary.train, summary.validation) if "depth" in decoder else ():
    of_block = {name.removeprefix("decoder/layer_0/") for name in record if name.startswith("decoder/")}
    assert {"depth/taken", "depth/accuracy", "depth/loss"} <= of_block
    assert 0 <= record["decoder/layer_0/depth/taken"] <= 1 and record["decoder/layer_0/depth/loss"] > 0


def test_the_positions_of_several_hosts_are_joined_into_one():
  positions = [{"source": "x", "streams": {"0": [1, 2]}}, {"source": "x", "streams": {"1": [3, 4]}}]
  assert join_positions(positions) == {"source": "x", "streams": {"0": [1, 2], "1": [3, 4]}}


def test_a_checkpoint_that_lacks_a_field_of_today_has_its_default(corpus, tmp_path):
  train(tiny_config(corpus, steps=2, checkpoint_every=2), tmp_path)
  path = tmp_path / "checkpoints" / "2" / "run" / "metadata"
  stored = json.loads(path.read_text())
  for field in ("norm_epsilon", "expert_dropout"):
    del stored["about"]["config"]["model"][field]
  path.write_text(json.dumps(stored))
  assert train(tiny_config(corpus, steps=3, checkpoint_every=2), tmp_path).step == 3


def test_checkpoints_of_another_model_are_refused_and_left_unchanged(corpus, tmp_path):
  train(tiny_config(corpus, steps=2, checkpoint_every=2), tmp_path / "mine")
  untrained(changed(corpus, "model.d_model", 24), tmp_path / "other")
  shutil.rmtree(tmp_path / "mine" / "checkpoints")
  shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "mine" / "checkpoints")
  with pytest.raises(WorkdirError, match=r"checkpoints of another model: config.model.d_model was 24, is 16$"):
    train(tiny_config(corpus, steps=4, checkpoint_every=2), tmp_path / "mine")
  assert Checkpoints(tmp_path / "mine" / "checkpoints", read_only=True).steps() == [0]
