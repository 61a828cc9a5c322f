"""A workdir is of one run, is whole, and is one run's at a time; until something is saved, it is nobody's."""

import json
import os
import pathlib
import shutil

import pytest

from moe.config import ConfigError
from moe.data import DataError
from moe.evaluation.restore import restore, vocabulary_of
from moe.training.checkpoint import CheckpointError, Checkpoints
from moe.training.experiment import load_config
from moe.training.hooks import TrainingStopped
from moe.training.metrics_file import MetricsWriter, read_metrics
from moe.training.trainer import train
from moe.training.workdir import Workdir, WorkdirError
from tests.training.test_checkpoint import ABOUT, make_state
from tests.training.tiny import Interrupt, interrupt_after, tiny_config, tiny_mapping, write_corpus

VOCABULARY = pathlib.Path(__file__).parents[2] / "configs" / "vocabularies" / "python_2k.model"


def short(corpus, steps=2, **train):
  return tiny_config(corpus, steps=steps, eval_every=steps, checkpoint_every=2, eval_batches=1, **train)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, corpus):
  """The workdir of a run of two steps."""
  return train(short(corpus), tmp_path_factory.mktemp("saved") / "run").workdir.root


@pytest.fixture
def copied(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "run")


# Its path.


@pytest.mark.parametrize("name", ["lr=[0.1]", "a*b", "what?", "a[", "back\\slash", "\udcff"])
def test_a_path_under_which_checkpoints_are_not_found_again_is_refused(tmp_path, name):
  with pytest.raises(ConfigError, match=r"^--workdir = .*: expected a path"):
    Workdir(tmp_path / name / "run")


@pytest.mark.parametrize("url", ["s3://bucket/run", "az://container/run", "file:///tmp/run"])
def test_a_url_of_another_store_is_refused_with_what_to_do(url):
  with pytest.raises(ConfigError, match=rf"^--workdir = '{url}': .*mount the bucket"):
    Workdir(url)


@pytest.mark.parametrize("name", ["a,b=1 {c}", "é#%20", "x/../y"])
def test_any_other_path_can_be_written_and_read(tmp_path, name):
  checkpoints = Checkpoints(Workdir(str(tmp_path / name)).checkpoints)
  checkpoints.save(make_state(1), {}, ABOUT)
  checkpoints.close()
  assert checkpoints.last_good is not None


def test_a_first_checkpoint_that_cannot_be_found_again_stops_the_run_and_claims_nothing(tmp_path):
  claimed = []
  checkpoints = Checkpoints(tmp_path / "lr=[0.1]", on_first=lambda: claimed.append(True))
  checkpoints.save(make_state(1), {}, ABOUT)
  with pytest.raises(CheckpointError, match=r"checkpoint 1 could not be written .0 of the 4 arrays of its model"):
    checkpoints.wait()
  assert not claimed


# One run at a time.


def test_a_second_run_is_refused_while_the_first_one_lives_and_does_not_disturb_it(corpus, tmp_path):
  refused = []

  def again(run, info):
    with pytest.raises(WorkdirError, match=rf"is in use by process {os.getpid()} on "):
      train(short(corpus), tmp_path / "run")
    refused.append(info.step)

  assert train(short(corpus), tmp_path / "run", [again]).finished
  assert refused == [1, 2] and [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 2]
  assert not (tmp_path / "run" / "lock").exists()


# Whose it is.


def test_until_a_checkpoint_is_complete_another_config_may_try_and_no_record_is_lost(corpus, tmp_path):
  with pytest.raises(Interrupt):
    train(tiny_config(corpus, checkpoint_every=3), tmp_path, [interrupt_after(2)])
  assert not (tmp_path / "config.json").exists()
  first = (tmp_path / "metrics.jsonl").read_bytes()
  config = load_config(tiny_mapping(corpus, steps=2, eval_every=2, checkpoint_every=2) | {"seed": 9})
  assert train(config, tmp_path).finished
  assert (tmp_path / "earlier-1" / "metrics.jsonl").read_bytes() == first
  assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2]
  with pytest.raises(WorkdirError, match=r"another config: config.seed was 9, is 3;"):
    train(short(corpus), tmp_path)


def test_a_kill_between_the_first_checkpoint_and_the_claim_loses_nothing(copied, corpus):
  (copied / "config.json").unlink()
  assert restore(copied).step == 2
  with pytest.raises(WorkdirError, match=r"config.train.accumulation was 1, is 2"):
    train(short(corpus, accumulation=2), copied)
  assert train(short(corpus, steps=4), copied).step == 4
  assert (copied / "config.json").exists()


def test_a_run_whose_checkpoints_are_gone_does_not_restart_in_silence(copied, corpus):
  records = (copied / "metrics.jsonl").read_bytes()
  shutil.rmtree(copied / "checkpoints")
  with pytest.raises(
    WorkdirError, match=r"whose checkpoints are gone: put .*/checkpoints back, .* remove .*config\.json"
  ):
    train(short(corpus), copied)
  assert (copied / "metrics.jsonl").read_bytes() == records


def test_a_folder_without_a_run_says_so(tmp_path):
  with pytest.raises(WorkdirError, match=r"holds no run: config\.json is written with the first checkpoint"):
    restore(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(corpus, tmp_path):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(WorkdirError, match=r"^cannot write to --workdir .*/file/run: Not a directory$"):
    train(short(corpus), tmp_path / "file" / "run")


# It is whole.


def with_vocabulary(corpus, path, **train):
  mapping = tiny_mapping(corpus, **{"steps": 2, "eval_every": 2, "checkpoint_every": 2, "eval_batches": 1} | train)
  mapping["model"]["vocab_size"] = 2048
  mapping["data"]["vocabulary"] = str(path)
  return load_config(mapping)


def test_a_run_keeps_its_own_vocabulary_and_knows_it_under_any_path(corpus, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copy(VOCABULARY, "mine.model")
  train(with_vocabulary(corpus, "mine.model"), "run")
  run = tmp_path / "run"
  assert (run / "vocabulary.model").read_bytes() == VOCABULARY.read_bytes()
  (tmp_path / "mine.model").unlink()
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir("elsewhere")
  assert vocabulary_of(restore(run)).decode(vocabulary_of(restore(run)).encode("import os")) == "import os"
  assert train(with_vocabulary(corpus, "mine.model", steps=3), run).step == 3
  assert train(with_vocabulary(corpus, VOCABULARY, steps=4), run).step == 4
  other = load_config(json.loads((run / "config.json").read_text()) | {"train": {"steps": 5}})
  assert pathlib.Path(other.data.vocabulary) == VOCABULARY  # where it was last


def test_another_vocabulary_of_the_same_size_is_refused(copied, corpus):
  mapping = tiny_mapping(corpus, steps=4)
  mapping["data"]["vocabulary"] = str(VOCABULARY)
  mapping["model"]["vocab_size"] = 2048
  with pytest.raises(WorkdirError, match=r"config.model.vocab_size was 259, is 2048"):
    train(load_config(mapping), copied)


def test_data_may_move_but_not_change(copied, corpus, tmp_path):
  (tmp_path / "data").mkdir()
  moved = shutil.copy(corpus, tmp_path / "data")
  assert train(short(moved, steps=4), copied).step == 4
  assert Workdir(copied).load_config().data.source.path == str(moved)  # readers find them where they are now
  other = write_corpus(tmp_path / "data" / "other.jsonl", seed=5)
  with pytest.raises(
    DataError, match=r"^split 'train' and split 'validation': not what the run in .* was trained with"
  ):
    train(short(other, steps=6), copied)
  assert Workdir(copied).load_config().data.source.path == str(moved)


def test_a_tilde_in_a_path_of_the_data_means_the_same_to_readers(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  shutil.copy(corpus, tmp_path / "mine.jsonl")
  workdir = Workdir("~/run")
  workdir.claim(short("~/mine.jsonl"))
  assert workdir.load_config().data.source.path == str(tmp_path / "mine.jsonl")


def test_batches_prepared_ahead_are_no_part_of_a_run(copied, corpus):
  mapping = tiny_mapping(corpus, steps=2, eval_every=2, checkpoint_every=2, eval_batches=1)
  mapping["data"]["prefetch"] = 1
  Workdir(copied).check(load_config(mapping))


# How it ends.


def test_a_run_asked_for_fewer_steps_than_it_has_is_finished(copied, corpus, capsys):
  assert train(short(corpus, steps=4), copied).step == 4
  summary = train(short(corpus, steps=2), copied)
  assert summary.finished and summary.step == 4
  assert "finished at step 4, which is beyond config.train.steps = 2" in capsys.readouterr().err


@pytest.fixture
def short_blocks(monkeypatch):
  """Documents are read in blocks of so few that the first of validation ends before the bad line."""
  for module in ("documents", "sources.text"):
    monkeypatch.setattr(f"moe.data.{module}.BLOCK_DOCUMENTS", 64)


def late_error(folder, *, held_out=False, split="train", **train):
  """Short documents, and a bad line far behind the first block of them.

  Validation has files of its own, good ones unless it is the `split` with the bad line, or is held out.
  """
  write_corpus(folder / "good.jsonl")
  lines = ['{"text": "grey owls"}'] * 1000
  lines[900] = '{"text": "cut o'
  if not (folder / "bad.jsonl").exists():
    (folder / "bad.jsonl").write_text("\n".join(lines) + "\n")
  mapping = tiny_mapping(folder / "bad.jsonl", **{"steps": 2000, "eval_every": 2000, "checkpoint_every": 1000} | train)
  mapping["data"] |= {"batch_size": 16, "shuffle": False}
  if not held_out:
    paths = {"path": str(folder / "bad.jsonl"), "validation_path": str(folder / "good.jsonl")}
    mapping["data"]["source"] |= paths if split == "train" else dict(zip(reversed(paths), paths.values()))
  return load_config(mapping)


def test_a_bad_line_far_in_the_data_saves_what_was_learnt_and_a_mended_file_continues(short_blocks, tmp_path, capsys):
  said = r"bad\.jsonl, line 901: is not JSON .*; stopped at step (\d+), the last good checkpoint is .*/checkpoints/\1$"
  steps = []
  with pytest.raises(TrainingStopped, match=said):
    train(late_error(tmp_path), tmp_path / "run", [lambda run, info: steps.append(info.step)])
  stopped = steps[-1]
  assert stopped < 1000 and restore(tmp_path / "run").step == stopped
  with pytest.raises(TrainingStopped, match=said):
    train(late_error(tmp_path), tmp_path / "run", [lambda run, info: steps.append(info.step)])
  assert steps[-1] == stopped
  bad = tmp_path / "bad.jsonl"
  bad.write_text(bad.read_text().replace('{"text": "cut o\n', '{"text": "cut off"}\n'))
  capsys.readouterr()
  assert train(late_error(tmp_path, steps=stopped + 1), tmp_path / "run").step == stopped + 1
  assert "the data have changed since the run stopped at an error in them" in capsys.readouterr().out


def test_a_mended_file_continues_where_validation_is_held_out_of_it(short_blocks, tmp_path, capsys):
  with pytest.raises(TrainingStopped, match=r"line 901: is not JSON"):
    train(late_error(tmp_path, held_out=True), tmp_path / "run")
  stopped, bad = restore(tmp_path / "run").step, tmp_path / "bad.jsonl"
  bad.write_text(bad.read_text().replace('{"text": "cut o\n', ""))
  mended = late_error(tmp_path, held_out=True, steps=stopped + 1, eval_batches=1)
  assert train(mended, tmp_path / "run").step == stopped + 1
  assert "the data have changed since the run stopped at an error in them" in capsys.readouterr().out


def test_a_bad_line_of_validation_saves_what_was_learnt_and_a_mended_file_continues(short_blocks, tmp_path, capsys):
  mapping = {"steps": 3, "eval_every": 2, "eval_batches": 0, "checkpoint_every": 3}

  def config():
    return late_error(tmp_path, split="validation", **mapping)

  for _ in range(2):
    with pytest.raises(TrainingStopped, match=r"line 901: is not JSON .*; stopped at step 2, .*/checkpoints/2$"):
      train(config(), tmp_path / "run")
  bad = tmp_path / "bad.jsonl"
  bad.write_text(bad.read_text().replace('{"text": "cut o\n', ""))
  assert train(config(), tmp_path / "run").step == 3
  assert "the data have changed since the run stopped at an error in them" in capsys.readouterr().out
  assert [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "validation"] == [2, 3]


def test_an_unwritable_tensorboard_folder_is_one_line(tmp_path, capsys):
  (tmp_path / "tensorboard").write_text("mine")
  MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard").close()
  out = capsys.readouterr().out
  assert len(out.splitlines()) == 1 and "cannot be written (File exists); metrics go to metrics.jsonl only" in out
