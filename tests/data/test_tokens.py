"""Token directories: damaged ones are rejected, and reading needs neither TensorFlow nor seqio."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from moe.config import ConfigError
from moe.data import DataError, load_vocabulary, make_pipeline, make_source, make_vocabulary
from moe.data.formats.token_directory import token_dtype, write_meta, write_split
from moe.data.sources.text import TextConfig
from moe.data.sources.tokens import TokensConfig
from tests.bucket import Store
from tests.data.conftest import make_config, write_json_lines

BLOCKED = ("tensorflow", "tensorflow_datasets", "seqio", "sentencepiece", "tqdm", "ml_collections", "jax")


def write(directory, config) -> None:
  vocabulary = load_vocabulary("bytes", 100)
  directory.mkdir()
  sources = {split: make_source(config, split, vocabulary) for split in ("train", "validation")}
  splits = {k: write_split(directory, k, v, vocabulary, lambda n: None) for k, v in sources.items()}
  write_meta(directory, vocabulary, False, splits)


@pytest.fixture
def tokens(tmp_path, corpus):
  write(tmp_path / "tokens", make_config(TextConfig(corpus)))
  return tmp_path / "tokens"


def config_of(directory, **changes):
  return make_config(TokensConfig(str(directory)), **({"vocabulary": ""} | changes))


def open_train(directory):
  return make_source(config_of(directory), "train", make_vocabulary(config_of(directory)))


def test_batches_are_made_where_nothing_but_numpy_is_installed(tokens):
  program = f"""
import sys
class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {BLOCKED}:
      raise ImportError(name + " must not be imported")
sys.meta_path.insert(0, Blocker())
from moe.data import DataConfig, make_pipeline
from moe.data.sources.tokens import TokensConfig
config = DataConfig(TokensConfig({str(tokens)!r}), inputs_length=24, targets_length=16, batch_size=4)
with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
  print(next(pipeline)["loss_weights"].sum() > 0)
"""
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert result.stdout.strip() == "True", result.stderr


def test_ids_are_stored_as_narrow_as_the_vocabulary_allows():
  assert token_dtype(2**16) is np.uint16
  assert token_dtype(2**16 + 1) is np.uint32


def test_a_directory_without_tokens_is_rejected(tmp_path):
  with pytest.raises(ConfigError, match=r"^config\.data\.source\.path = .*: expected a directory with meta\.json"):
    open_train(tmp_path)


def test_an_unknown_split_is_rejected(tokens):
  with pytest.raises(DataError, match=r"split 'test': expected one of train, validation, the splits of .*tokens"):
    make_source(config_of(tokens), "test", make_vocabulary(config_of(tokens)))


def test_another_vocabulary_than_that_of_the_tokens_is_rejected(tokens):
  make_vocabulary(config_of(tokens, vocabulary="bytes"))
  meta = json.loads((tokens / "meta.json").read_text())
  meta["vocabulary"]["fingerprint"] = "another"
  (tokens / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(ConfigError, match="expected the vocabulary that"):
    make_vocabulary(config_of(tokens, vocabulary="bytes"))


def cut_short(path) -> None:
  path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("name", ["train.targets.bin", "train.targets.offsets.npy", "meta.json"])
@pytest.mark.parametrize("damage", [cut_short, lambda path: path.write_bytes(b"")], ids=["cut", "emptied"])
def test_a_damaged_file_is_named(tokens, name, damage):
  damage(tokens / name)
  with pytest.raises(DataError, match=name):
    open_train(tokens)


@pytest.mark.parametrize("name", ["train.targets.bin", "train.targets.offsets.npy"])
def test_a_missing_file_is_named(tokens, name):
  (tokens / name).unlink()
  with pytest.raises(DataError, match=name):
    open_train(tokens)


@pytest.mark.parametrize(("wrong", "said"), [(359, "359"), (2**16 - 1, "65535")])
def test_an_id_beyond_the_vocabulary_is_named_with_its_document_and_position(tokens, wrong, said, small_blocks):
  offsets = np.load(tokens / "train.targets.offsets.npy")
  ids = np.memmap(tokens / "train.targets.bin", np.uint16, "r+")
  ids[offsets[7] + 3] = wrong
  ids.flush()
  source = open_train(tokens)
  next(source.blocks(0, 0, 0))
  problem = rf"train\.targets\.bin, document 7: has id {said} at position 3: expected ids from 0 to 358"
  with pytest.raises(DataError, match=problem):
    next(source.blocks(1, 0, 0))


def test_offsets_that_go_back_are_rejected(tokens):
  path = tokens / "train.targets.offsets.npy"
  offsets = np.load(path)
  offsets[[3, 4]] = offsets[[4, 3]]
  np.save(path, offsets)
  with pytest.raises(DataError, match=r"offsets\.npy: does not match meta\.json"):
    open_train(tokens)


@pytest.mark.parametrize("part", ["dtype", "features", "splits", "vocabulary"])
def test_a_description_without_one_of_its_parts_is_rejected(tokens, part):
  meta = json.loads((tokens / "meta.json").read_text())
  del meta[part]
  (tokens / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(DataError, match=r"meta\.json: is damaged: parts are missing"):
    open_train(tokens)


def test_a_home_folder_is_found(tokens, monkeypatch):
  monkeypatch.setenv("HOME", str(tokens.parent))
  assert open_train("~/tokens").fingerprint == open_train(tokens).fingerprint


def test_another_format_is_rejected(tokens):
  (tokens / "meta.json").write_text('{"format": 99}')
  with pytest.raises(DataError, match=r"meta\.json: is not of format 1"):
    open_train(tokens)


def test_ids_have_no_text_to_compare_with(tokens):
  with pytest.raises(DataError, match="has no text"):
    open_train(tokens).texts(0)


def test_a_split_without_documents_trains_nothing_and_says_so(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "all of it", "split": "train"}])
  write(tmp_path / "tokens", make_config(TextConfig(str(tmp_path / "a.jsonl"))))
  config = config_of(tmp_path / "tokens")
  with make_pipeline(config, "inputs_and_targets", "validation", training=False) as pipeline:
    assert list(pipeline) == []
  with (
    make_pipeline(config, "inputs_and_targets", "validation", training=True) as pipeline,
    pytest.raises(DataError, match="no example for stream 0"),
  ):
    next(pipeline)


# In a bucket.


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_tokens_in_a_bucket_give_the_batches_of_those_on_a_disk(bucket, tokens, small_blocks, scheme):
  shutil.copytree(tokens, bucket / "tokens")
  batches = []
  for directory in (tokens, f"{scheme}://bucket/tokens"):
    with make_pipeline(config_of(directory), "inputs_and_targets", "train", training=True) as pipeline:
      batches.append([next(pipeline) for _ in range(20)])
  for here, there in zip(*batches, strict=True):
    assert all(np.array_equal(here[name], there[name]) for name in here)


def test_tokens_keep_their_vocabulary_wherever_it_lies(bucket, tmp_path):
  model = pathlib.Path("configs/vocabularies/english_1k.model").read_bytes()
  (bucket / "v.model").write_bytes(model)
  write_meta(tmp_path, load_vocabulary("gs://bucket/v.model", 0), False, {})
  assert (tmp_path / "vocabulary.model").read_bytes() == model


def test_only_the_blocks_that_are_needed_are_read_from_a_bucket(bucket, tokens, small_blocks):
  shutil.copytree(tokens, bucket / "tokens")
  source = open_train("gs://bucket/tokens")
  Store.reads.clear()
  offsets = 2 * np.load(tokens / "train.targets.offsets.npy")
  next(source.blocks(1, 0, 0))
  assert Store.reads == [("train.targets.bin", offsets[5], offsets[10] - offsets[5])]


def test_tokens_that_are_not_in_the_bucket_or_not_whole_are_named(bucket, tokens):
  with pytest.raises(
    ConfigError, match=r"^config\.data\.source\.path = 'gs://bucket/none': expected a directory with meta"
  ):
    open_train("gs://bucket/none")
  shutil.copytree(tokens, bucket / "tokens")
  cut_short(bucket / "tokens" / "train.targets.bin")
  with pytest.raises(DataError, match=r"^gs://bucket/tokens/train\.targets\.bin: has \d+ bytes, expected \d+"):
    open_train("gs://bucket/tokens")
  (bucket / "tokens" / "train.targets.offsets.npy").unlink()
  shutil.copy(tokens / "train.targets.bin", bucket / "tokens")
  with pytest.raises(DataError, match=r"^gs://bucket/tokens/train\.targets\.offsets\.npy: is missing or damaged"):
    open_train("gs://bucket/tokens")


def test_a_bucket_that_ends_while_it_is_read_is_named(bucket, tokens):
  shutil.copytree(tokens, bucket / "tokens")
  source = open_train("gs://bucket/tokens")
  (bucket / "tokens" / "train.targets.bin").unlink()
  with pytest.raises(DataError, match=r"^gs://bucket/tokens/train\.targets\.bin: cannot be read \(no such object"):
    next(source.blocks(0, 0, 0))
