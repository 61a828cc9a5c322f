"""The scripts that prepare data, from files to batches."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from moe.data import load_vocabulary, make_pipeline, make_source, make_vocabulary
from tests.data.conftest import assert_same_batches, make_config, make_texts, write_json_lines

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


def load(name: str):
  spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def tokenize(*arguments) -> None:
  load("tokenize_corpus").main([str(argument) for argument in arguments])


def train_vocabulary(*arguments) -> None:
  load("train_vocabulary").main([str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path, corpus) -> str:
  out = tmp_path / "trained.model"
  train_vocabulary("--source", "text", "--path", corpus, "--size", 320, "--out", out)
  return str(out)


def documents(config, split: str) -> list[list[int]]:
  source = make_source(config, split, make_vocabulary(config))
  blocks = [block for shard in range(source.num_shards) for block in source.blocks(shard, 0, 0)]
  return [block.targets[i].tolist() for block in blocks for i in range(len(block))]


def test_a_trained_vocabulary_loses_nothing(model):
  vocabulary = load_vocabulary(model, 0)
  assert vocabulary.size == 320
  for text in [*make_texts(20), " a\t\tb\n\n\n  c  ", "unseen 中文"]:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_only_pieces_across_spaces_hold_several_words(tmp_path):
  words = np.random.default_rng(0).choice(list("abcdefghij"), (400, 4))
  (tmp_path / "a.txt").write_text("".join(f"{''.join(word)} of the\n" for word in words))
  several = []
  for flags in ([], ["--across_spaces"]):
    out = tmp_path / f"{len(flags)}.model"
    train_vocabulary("--source", "text", "--path", tmp_path / "a.txt", "--size", 300, *flags, "--out", out)
    vocabulary = load_vocabulary(str(out), 0)
    several.append(any(" " in vocabulary.decode([i]).strip() for i in range(vocabulary.size)))
  assert several == [False, True]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_tokens_are_the_documents_of_the_text_they_were_made_of(tmp_path, corpus, model, kind, small_blocks):
  vocabulary = "bytes" if kind == "bytes" else model
  out = tmp_path / "tokens"
  tokenize("--source", "text", "--path", corpus, "--vocabulary", vocabulary, "--out", out)
  of_text, of_tokens = make_config(path=corpus, vocabulary=vocabulary), tokens_config(out)
  for split in ("train", "validation"):
    assert documents(of_tokens, split) == documents(of_text, split) != []


def test_tokens_have_the_vocabulary_they_were_made_with(tmp_path, corpus, model):
  tokenize("--source", "text", "--path", corpus, "--vocabulary", model, "--out", tmp_path / "tokens")
  stored, own = make_vocabulary(tokens_config(tmp_path / "tokens")), load_vocabulary(model, 100)
  assert (stored.size, stored.fingerprint, stored.extra_ids) == (own.size, own.fingerprint, own.extra_ids)
  np.testing.assert_array_equal(stored.byte_lengths(), own.byte_lengths())
  text = make_texts(3)[2]
  assert stored.decode(stored.encode(text)) == text
  np.testing.assert_array_equal(stored.encode(text), own.encode(text))


def test_text_and_tokens_give_the_same_validation_batches(tmp_path, corpus):
  tokenize("--source", "text", "--path", corpus, "--out", tmp_path / "tokens")
  # One shard each, so that both are read in the same blocks.
  one_file = tmp_path / "all.jsonl"
  texts = [json.loads(line) for path in sorted(pathlib.Path(corpus).parent.iterdir()) for line in path.open()]
  write_json_lines(one_file, texts)
  tokenize("--source", "text", "--path", one_file, "--out", tmp_path / "tokens_of_one")
  pipelines = [
    make_pipeline(config, "encoder_decoder", "validation", training=False)
    for config in (make_config(path=str(one_file)), tokens_config(tmp_path / "tokens_of_one"))
  ]
  for of_text, of_tokens in zip(*pipelines, strict=True):
    assert_same_batches(of_text, of_tokens)


def test_pairs_are_stored_as_pairs(tmp_path):
  tokenize(
    "--source", "task", "--task", "moe_test_pairs", "--modules", "tests.data.seqio_tasks", "--out", tmp_path / "t"
  )
  changes = {"objective": "text_to_text"}
  of_task = make_config(source="task", task="moe_test_pairs", modules=("tests.data.seqio_tasks",), **changes)
  pipelines = [
    make_pipeline(config, "encoder_decoder", "validation", training=False)
    for config in (of_task, tokens_config(tmp_path / "t", **changes))
  ]
  for of_task, of_tokens in zip(*pipelines, strict=True):
    assert_same_batches(of_task, of_tokens)


def test_a_config_file_is_as_good_as_options(tmp_path, corpus):
  config = tmp_path / "config.py"
  config.write_text(f"""
import ml_collections
def get_config():
  data = dict(source="text", path={corpus!r}, vocabulary="bytes", inputs_length=8, targets_length=8, batch_size=2)
  return ml_collections.ConfigDict(dict(data=data))
""")
  tokenize("--config", config, "--out", tmp_path / "a")
  tokenize("--source", "text", "--path", corpus, "--out", tmp_path / "b")
  for file in (tmp_path / "a").iterdir():
    assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_nothing_is_overwritten(tmp_path, corpus, model):
  (tmp_path / "tokens").mkdir()
  before = pathlib.Path(model).read_bytes()
  with pytest.raises(SystemExit, match="tokens': exists already"):
    tokenize("--source", "text", "--path", corpus, "--out", tmp_path / "tokens")
  with pytest.raises(SystemExit, match=r"trained\.model': exists already"):
    train_vocabulary("--source", "text", "--path", corpus, "--size", 320, "--out", model)
  assert pathlib.Path(model).read_bytes() == before


def test_a_failure_leaves_nothing_behind(tmp_path, corpus):
  (pathlib.Path(corpus).parent / "2.jsonl").open("a").write("{bad}\n")
  before = sorted(tmp_path.iterdir())
  with pytest.raises(SystemExit, match="is not JSON"):
    tokenize("--source", "text", "--path", corpus, "--out", tmp_path / "tokens")
  with pytest.raises(SystemExit, match="is not JSON"):
    train_vocabulary("--source", "text", "--path", corpus, "--size", 320, "--out", tmp_path / "x.model")
  assert sorted(tmp_path.iterdir()) == before


def test_a_size_that_the_text_cannot_fill_is_refused(tmp_path, corpus):
  for size in (10, 100_000):
    with pytest.raises(SystemExit, match=f"--size = {size}: cannot be reached"):
      train_vocabulary("--source", "text", "--path", corpus, "--size", size, "--out", tmp_path / "x.model")
  assert not (tmp_path / "x.model").exists()


def test_the_command_line_says_one_line_of_what_is_wrong(tmp_path):
  command = [sys.executable, SCRIPTS / "tokenize_corpus.py", "--source", "text", "--path", "none*", "--out", "x"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 1
  assert result.stderr == "error: path = 'none*': matches no file\n"


def tokens_config(directory, **changes):
  return make_config(source="tokens", path=str(directory), vocabulary="", **changes)
