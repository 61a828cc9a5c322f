"""The scripts that prepare data, from files to batches."""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from moe.config import ConfigError
from moe.data import DataError, load_vocabulary, make_pipeline, make_source, make_vocabulary
from moe.data.command_line import add_data_options, parse_data
from moe.data.sources.standard_library import StandardLibraryConfig
from moe.data.sources.task import TaskConfig
from moe.data.sources.text import TextConfig
from moe.data.sources.tokens import TokensConfig
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


def data(**fields) -> list[str]:
  """The arguments `--data FIELD=VALUE`; `source__path` is the field source.path."""
  return [part for name, value in fields.items() for part in ("--data", f"{name.replace('__', '.')}={value}")]


def text(path, **fields) -> list[str]:
  return data(source="text", source__path=path, **fields)


@pytest.fixture
def model(tmp_path, corpus) -> str:
  out = tmp_path / "trained.model"
  train_vocabulary(*text(corpus), "--size", 320, "--out", out)
  return str(out)


def documents(config, split: str) -> list[list[int]]:
  source = make_source(config, split, make_vocabulary(config))
  blocks = [block for shard in range(source.num_shards) for block in source.blocks(shard, 0, 0)]
  return [block.targets[i].tolist() for block in blocks for i in range(len(block))]


def test_a_trained_vocabulary_loses_nothing(model):
  vocabulary = load_vocabulary(model, 0)
  assert vocabulary.size == 320
  for document in [*make_texts(20), " a\t\tb\n\n\n  c  ", "unseen 中文"]:
    assert vocabulary.decode(vocabulary.encode(document)) == document


def test_only_pieces_across_spaces_hold_several_words(tmp_path):
  words = np.random.default_rng(0).choice(list("abcdefghij"), (400, 4))
  (tmp_path / "a.txt").write_text("".join(f"{''.join(word)} of the\n" for word in words))
  several = []
  for flags in ([], ["--across_spaces"]):
    out = tmp_path / f"{len(flags)}.model"
    train_vocabulary(*text(tmp_path / "a.txt"), "--size", 300, *flags, "--out", out)
    vocabulary = load_vocabulary(str(out), 0)
    several.append(any(" " in vocabulary.decode([i]).strip() for i in range(vocabulary.size)))
  assert several == [False, True]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_tokens_are_the_documents_of_the_text_they_were_made_of(tmp_path, corpus, model, kind, small_blocks):
  vocabulary = "bytes" if kind == "bytes" else model
  out = tmp_path / "tokens"
  tokenize(*text(corpus, vocabulary=vocabulary), "--out", out)
  of_text, of_tokens = make_config(TextConfig(corpus), vocabulary=vocabulary), tokens_config(out)
  for split in ("train", "validation"):
    assert documents(of_tokens, split) == documents(of_text, split) != []


def test_tokens_have_the_vocabulary_they_were_made_with(tmp_path, corpus, model):
  tokenize(*text(corpus, vocabulary=model), "--out", tmp_path / "tokens")
  stored, own = make_vocabulary(tokens_config(tmp_path / "tokens")), load_vocabulary(model, 100)
  assert (stored.size, stored.fingerprint, stored.extra_ids) == (own.size, own.fingerprint, own.extra_ids)
  np.testing.assert_array_equal(stored.byte_lengths(), own.byte_lengths())
  document = make_texts(3)[2]
  assert stored.decode(stored.encode(document)) == document
  np.testing.assert_array_equal(stored.encode(document), own.encode(document))


def test_text_and_tokens_give_the_same_validation_batches(tmp_path, corpus):
  tokenize(*text(corpus), "--out", tmp_path / "tokens")
  # One shard each, so that both are read in the same blocks.
  one_file = tmp_path / "all.jsonl"
  texts = [json.loads(line) for path in sorted(pathlib.Path(corpus).parent.iterdir()) for line in path.open()]
  write_json_lines(one_file, texts)
  tokenize(*text(one_file), "--out", tmp_path / "tokens_of_one")
  pipelines = [
    make_pipeline(config, "inputs_and_targets", "validation", training=False)
    for config in (make_config(TextConfig(str(one_file))), tokens_config(tmp_path / "tokens_of_one"))
  ]
  for of_text, of_tokens in zip(*pipelines, strict=True):
    assert_same_batches(of_text, of_tokens)


def test_pairs_are_stored_as_pairs(tmp_path):
  task = data(source="task", source__task="moe_test_pairs", source__modules='["tests.data.seqio_tasks"]')
  tokenize(*task, "--out", tmp_path / "t")
  changes = {"objective": "text_to_text"}
  of_task = make_config(TaskConfig("moe_test_pairs", modules=("tests.data.seqio_tasks",)), **changes)
  pipelines = [
    make_pipeline(config, "inputs_and_targets", "validation", training=False)
    for config in (of_task, tokens_config(tmp_path / "t", **changes))
  ]
  for of_task, of_tokens in zip(*pipelines, strict=True):
    assert_same_batches(of_task, of_tokens)


def test_a_config_file_and_its_fields_give_the_same(tmp_path, corpus):
  config = tmp_path / "config.py"
  config.write_text(f"""
import ml_collections
def get_config():
  source = dict(name="text", path={corpus!r})
  data = dict(source=source, vocabulary="bytes", inputs_length=8, targets_length=8, batch_size=2)
  return ml_collections.ConfigDict(dict(data=data))
""")
  tokenize("--config", config, "--out", tmp_path / "a")
  tokenize(*text(corpus), "--out", tmp_path / "b")
  for file in (tmp_path / "a").iterdir():
    assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_nothing_is_overwritten(tmp_path, corpus, model):
  (tmp_path / "tokens").mkdir()
  before = pathlib.Path(model).read_bytes()
  with pytest.raises(ConfigError, match=r"^--out = '.*tokens': expected a path that does not exist"):
    tokenize(*text(corpus), "--out", tmp_path / "tokens")
  with pytest.raises(ConfigError, match=r"^--out = '.*trained\.model': expected a path that does not exist"):
    train_vocabulary(*text(corpus), "--size", 320, "--out", model)
  assert pathlib.Path(model).read_bytes() == before


@pytest.mark.parametrize("out", ["missing/x", "file/x", "x" * 300])
def test_a_path_that_cannot_be_written_is_found_before_the_work(tmp_path, out):
  (tmp_path / "file").touch()
  before = sorted(tmp_path.iterdir())
  for script, options in ((tokenize, ()), (train_vocabulary, ("--size", 300))):
    with pytest.raises(ConfigError, match=r"^--out = .*: expected a path that can be written"):
      script(*text("no such corpus"), *options, "--out", tmp_path / out)
  assert sorted(tmp_path.iterdir()) == before


def test_a_long_line_is_not_left_out(tmp_path):
  """SentencePiece alone leaves out lines of more than 4,192 bytes."""
  (tmp_path / "a.txt").write_text("short line\n" * 200 + "zebra " * 20_000 + "\n")
  train_vocabulary(*text(tmp_path / "a.txt"), "--size", 290, "--out", tmp_path / "a.model")
  assert len(load_vocabulary(str(tmp_path / "a.model"), 0).encode(" zebra")) <= 2


def test_half_a_surrogate_pair_is_the_lines_fault(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n{"text": "\\ud83d"}\n')
  for script, options in ((tokenize, ()), (train_vocabulary, ("--size", 300))):
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: has half a surrogate pair"):
      script(*text(tmp_path / "a.jsonl"), *options, "--out", tmp_path / "out")


def test_a_failure_leaves_nothing_behind(tmp_path, corpus):
  (pathlib.Path(corpus).parent / "2.jsonl").open("a").write("{bad}\n")
  before = sorted(tmp_path.iterdir())
  with pytest.raises(DataError, match=r"2\.jsonl, line 13: is not JSON"):
    tokenize(*text(corpus), "--out", tmp_path / "tokens")
  with pytest.raises(DataError, match=r"2\.jsonl, line 13: is not JSON"):
    train_vocabulary(*text(corpus), "--size", 320, "--out", tmp_path / "x.model")
  assert sorted(tmp_path.iterdir()) == before


def test_a_size_that_the_text_cannot_fill_is_rejected(tmp_path, corpus):
  for size in (10, 100_000):
    with pytest.raises(ConfigError, match=f"^--size = {size}: expected a size that suits this text"):
      train_vocabulary(*text(corpus), "--size", size, "--out", tmp_path / "x.model")
  assert not (tmp_path / "x.model").exists()


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path):
  command = [sys.executable, SCRIPTS / "tokenize_corpus.py", *text("none*"), "--out", "x"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 2
  assert result.stderr == "error: config.data.source.path = 'none*': expected to match at least one file\n"


def tokens_config(directory, **changes):
  return make_config(TokensConfig(str(directory)), vocabulary="", **changes)


def parse(*arguments):
  parser = argparse.ArgumentParser()
  add_data_options(parser)
  return parse_data(parser.parse_args(arguments))


def test_fields_replace_those_of_a_config_file(tmp_path):
  config = tmp_path / "config.py"
  config.write_text("""
import ml_collections
def get_config():
  data = dict(source="standard_library", vocabulary="x.model", inputs_length=8, targets_length=9, batch_size=2)
  return ml_collections.ConfigDict(dict(data=data))
""")
  found = parse("--config", str(config), *data(batch_size=4, source__validation_fraction=0.5))
  assert (found.vocabulary, found.targets_length, found.batch_size) == ("x.model", 9, 4)
  assert found.source == StandardLibraryConfig(0.5)
  assert parse("--config", str(config), *text("a*")).source == TextConfig("a*")


def test_the_vocabulary_is_bytes_unless_the_source_has_its_own():
  assert parse(*text("a*")).vocabulary == "bytes"
  assert parse(*data(source="tokens", source__path="a")).vocabulary == ""


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([], r"data\.source\.name = None: expected one of image_dataset, image_folder, standard_library, task, text, "),
    (["--data", "source"], "argument = 'source': expected FIELD=VALUE"),
    (["--data", "source=text"], r"data\.source\.path = None"),
    (["--data", "source=standard_library", "--data", "path=x"], r"data\.path = 'x': unknown field"),
    (["--config", "none.py"], "--config = 'none.py': expected an existing file"),
  ],
)
def test_each_wrong_argument_is_named(arguments, said):
  with pytest.raises(ConfigError, match=said):
    parse(*arguments)
