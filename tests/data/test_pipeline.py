"""Batches: one format from every source, the same on any number of hosts, resumed exactly."""

import contextlib
import dataclasses
import json
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from moe.config import ConfigError
from moe.data import DataError, make_pipeline
from moe.data.batch import RowShape
from moe.data.corpus import make_vocabulary
from moe.data.documents import Documents, Ragged
from moe.data.objectives.causal_lm import CausalLMConfig
from moe.data.pipeline import Pipeline
from moe.data.sources.task import TaskConfig
from moe.data.sources.text import TextConfig
from moe.data.sources.tokens import TokensConfig
from moe.data.streams import BlockReader, RowMaker, RowStream, StreamPosition, StreamRules
from tests.data.conftest import assert_same_batches, make_config, make_texts, segments, write_json_lines
from tests.data.test_tokens import write as write_tokens

FORMAT = {
  "inputs": ((4, 24), np.int32),
  "inputs_positions": ((4, 24), np.int32),
  "inputs_segments": ((4, 24), np.int32),
  "targets": ((4, 16), np.int32),
  "targets_positions": ((4, 16), np.int32),
  "targets_segments": ((4, 16), np.int32),
  "loss_weights": ((4, 16), np.float32),
}


@pytest.fixture(params=["text", "one file", "tokens", "seqio task"])
def config(request, tmp_path, corpus, small_blocks):
  """A config of each source, with several blocks and, but for one, several shards."""
  if request.param == "seqio task":
    return make_config(TaskConfig("moe_test_lines", modules=("tests.data.seqio_tasks",)))
  if request.param == "tokens":
    write_tokens(tmp_path / "tokens", make_config(TextConfig(corpus)))
    return make_config(TokensConfig(str(tmp_path / "tokens")), vocabulary="")
  if request.param == "one file":
    write_json_lines(tmp_path / "all.jsonl", ({"text": text} for text in make_texts(36)))
    return make_config(TextConfig(str(tmp_path / "all.jsonl")))
  return make_config(TextConfig(corpus))


def start(config, **changes) -> Pipeline:
  options = {"row_format": "inputs_and_targets", "split": "train", "training": True}
  return make_pipeline(config, **(options | changes))


def take(pipeline: Pipeline, number: int) -> list[dict]:
  with pipeline:
    return [next(pipeline) for _ in range(number)]


def test_every_source_gives_the_same_format(config):
  (batch,) = take(start(config), 1)
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == FORMAT


def test_the_standard_library_gives_the_same_format():
  (batch,) = take(start(make_config("standard_library")), 1)
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == FORMAT


@pytest.mark.parametrize("streams", [1, 4])
def test_resuming_at_any_batch_gives_the_batches_of_an_uninterrupted_run(config, streams):
  config = dataclasses.replace(config, streams=streams)
  with start(config) as pipeline:
    batches, positions = [], []
    while len(batches) < 200 and (not batches or json.loads(positions[-1])["streams"]["0"][0] < 2):
      positions.append(json.dumps(pipeline.position))
      batches.append(next(pipeline))
  assert json.loads(positions[-1])["streams"]["0"][0] == 2, "expected to see two epochs"
  for number in range(0, len(batches), max(1, len(batches) // 12)):
    with start(config) as resumed:
      resumed.restore(json.loads(positions[number]))
      assert resumed.position == json.loads(positions[number])
      for expected in batches[number : number + 6]:
        assert_same_batches(next(resumed), expected)


def test_a_pipeline_can_be_restored_while_it_runs(config):
  with start(config) as pipeline:
    position = pipeline.position
    first = [next(pipeline) for _ in range(5)]
    pipeline.restore(position)
    for batch in first:
      assert_same_batches(next(pipeline), batch)


def test_closing_and_continuing_loses_no_batch(config):
  expected = take(start(config), 6)
  with start(config) as pipeline:
    for batch in expected:
      assert_same_batches(next(pipeline), batch)
      pipeline.close()


def test_an_epoch_has_every_example_of_a_pass_once(config):
  config = dataclasses.replace(config, pack=False, batch_size=1, shuffle=True)
  ordered = [segments(batch, "targets") for batch in start(config, training=False)]
  shuffled, pipeline = [], start(config)
  with pipeline:
    for _ in ordered:
      shuffled.append(segments(next(pipeline), "targets"))
    assert pipeline.position["streams"]["0"][0] == 0
    next(pipeline)
    assert pipeline.position["streams"]["0"][0] == 1
  assert len(ordered) > 36
  assert sorted(shuffled) == sorted(ordered)
  assert shuffled != ordered


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(config):
  first, again, other = (take(start(dataclasses.replace(config, seed=seed)), 5) for seed in (1, 1, 2))
  for batch, same in zip(first, again):
    assert_same_batches(batch, same)
  assert any((a["targets"] != b["targets"]).any() for a, b in zip(first, other))


def test_epochs_are_shuffled_differently(config):
  config = dataclasses.replace(config, batch_size=1, pack=False)
  length = sum(1 for _ in start(config, training=False))
  batches = take(start(config), 2 * length)
  one, two = ([segments(batch, "inputs") for batch in part] for part in (batches[:length], batches[length:]))
  assert one != two


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_is_the_same_on_any_number_of_hosts(config, hosts):
  config = dataclasses.replace(config, batch_size=8, streams=4)
  alone = take(start(config), 12)
  parts = [take(start(config, rows=rows), 12) for rows in np.split(np.arange(8), hosts)]
  for number, batch in enumerate(alone):
    joined = {name: np.concatenate([part[number][name] for part in parts]) for name in batch}
    assert_same_batches(joined, batch)


def test_a_host_may_want_separate_rows_and_parts_of_streams(config):
  config = dataclasses.replace(config, batch_size=8, streams=4)  # two rows each
  rows = np.array([1, 2, 6, 7])
  for batch, part in zip(take(start(config), 12), take(start(config, rows=rows), 12)):
    assert_same_batches(part, {name: array[rows] for name, array in batch.items()})


def test_a_single_host_restores_the_merged_positions_of_several(config):
  config = dataclasses.replace(config, batch_size=8, streams=4)
  expected = take(start(config), 8)
  positions = []
  for rows in np.split(np.arange(8), 2):
    with start(config, rows=rows) as host:
      for _ in range(5):
        next(host)
      positions.append(host.position)
  merged = positions[0] | {"streams": positions[0]["streams"] | positions[1]["streams"]}
  with start(config) as pipeline:
    pipeline.restore(merged)
    for batch in expected[5:]:
      assert_same_batches(next(pipeline), batch)
  with start(config) as pipeline, pytest.raises(DataError, match="no position for stream 2 of 4"):
    pipeline.restore(positions[0])


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_a_pass_has_every_example_once_whatever_the_streams(config, streams):
  found = []
  for number in (1, streams):
    examples = []
    for batch in start(dataclasses.replace(config, streams=number), training=False):
      examples += [a + b for a, b in zip(segments(batch, "inputs"), segments(batch, "targets"), strict=True)]
    found.append(sorted(examples))
  assert found[0] == found[1]


def test_the_first_batches_of_a_pass_are_like_the_rest_and_no_seed_changes_them(tmp_path):
  """Packing puts documents that fill a row first: in its order the first half would have one segment a row."""
  draw = np.random.default_rng(0)
  lengths = np.where(draw.random(600) < 0.5, 30, draw.integers(2, 8, 600))
  write_json_lines(tmp_path / "all.jsonl", ({"text": "a" * length} for length in lengths))
  config = make_config(TextConfig(str(tmp_path / "all.jsonl")), objective="span_corruption")
  passes = [list(start(dataclasses.replace(config, seed=seed), training=False)) for seed in (0, 1)]
  for name in ("inputs_segments", "targets_segments"):
    per_row = [np.concatenate([batch[name].max(1) for batch in batches]) for batches in passes]
    np.testing.assert_array_equal(per_row[0], per_row[1])
  rows = per_row[0][per_row[0] > 0]
  assert len(rows) > 300 and rows.max() > 2
  for part in np.array_split(rows, 4):
    assert part.mean() == pytest.approx(rows.mean(), abs=3 * rows.std() / np.sqrt(len(part)))


def test_a_pass_ends_with_empty_rows_and_can_be_repeated(config):
  config = dataclasses.replace(config, batch_size=7, pack=False)
  first, again = list(start(config, training=False)), list(start(config, training=False))
  assert len(first) == len(again)
  for batch, same in zip(first, again):
    assert_same_batches(batch, same)
  rows = np.concatenate([batch["targets_segments"].max(axis=1) for batch in first])
  assert (rows[: rows.sum()] == 1).all() and (rows[rows.sum() :] == 0).all()
  assert len(rows) - rows.sum() < 7


def test_packed_rows_restart_positions_and_number_their_segments(config):
  packed = 0
  for batch in start(config, training=False):
    for name in ("inputs", "targets"):
      ids, positions, numbers = (batch[name + suffix] for suffix in ("", "_positions", "_segments"))
      for row in range(len(ids)):
        lengths = np.bincount(numbers[row])[1:]
        used = lengths.sum()
        assert (lengths > 0).all()
        assert numbers[row, :used].tolist() == np.repeat(np.arange(len(lengths)) + 1, lengths).tolist()
        assert positions[row, :used].tolist() == [p for n in lengths for p in range(n)]
        assert not (ids[row, used:].any() or numbers[row, used:].any() or positions[row, used:].any())
        packed += len(lengths) > 1
    assert (batch["inputs_segments"].max(axis=1) == batch["targets_segments"].max(axis=1)).all()
  assert packed


def test_data_that_changed_since_the_checkpoint_is_rejected(corpus):
  with start(make_config(TextConfig(corpus))) as pipeline:
    position = pipeline.position
  with open(corpus.replace("*", "0"), "a") as file:
    file.write('{"text": "one more"}\n')
  with (
    start(make_config(TextConfig(corpus))) as pipeline,
    pytest.raises(DataError, match="has changed since the checkpoint"),
  ):
    pipeline.restore(position)


def test_an_error_while_reading_reaches_whoever_asks_for_batches(corpus):
  with open(corpus.replace("*", "1"), "ab") as file:
    file.write(b'{"text": "caf\xe9"}\n')
  with (
    start(make_config(TextConfig(corpus))) as pipeline,
    pytest.raises(DataError, match=r"1\.jsonl, line 13: is not UTF-8"),
  ):
    for _ in range(1000):
      next(pipeline)


def test_a_bad_first_record_of_any_file_is_an_error_before_all_batches(corpus):
  pathlib.Path(corpus.replace("*", "2")).write_bytes(b'{"text": "caf\xe9"}\n')
  with pytest.raises(DataError, match=r"2\.jsonl, line 1: is not UTF-8"):
    start(make_config(TextConfig(corpus)))


def test_more_streams_than_rows_give_the_same_ones_in_different_epochs(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "only one", "split": "train"}])
  config = make_config(TextConfig(str(tmp_path / "a.jsonl")), streams=2, batch_size=2)
  with start(config) as pipeline:
    for _ in range(3):
      batch = next(pipeline)
      assert (batch["targets_segments"].max(axis=1) == 1).all()
    assert [place[0] for place in pipeline.position["streams"].values()] == [4, 5]


class Small:
  """63 shards of one block of five documents that fill a row each."""

  num_shards, supervised, varies, fingerprint, skipped = 63, False, False, "", 0

  def __init__(self):
    self.opened = 0

  def blocks(self, shard, start, epoch):
    self.opened += 1
    return iter([Documents(Ragged(np.ones(5 * 63, np.int32), np.arange(6) * 63))][start:])


def test_blocks_of_fewer_rows_than_streams_are_read_and_made_once_in_an_epoch():
  source, made, number = Small(), [], 64
  streams, executor = shared_streams(source, number, made)
  with executor:
    for _ in range(63 * 5 // number):
      assert all(stream.take() for stream in streams)
  assert len(made) == len(set(made)) <= 64 and source.opened <= 2 * 64


def test_a_position_of_streams_that_shared_their_shards_in_another_way_is_refused(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", ({"text": text} for text in make_texts(36)))
  for streams, says in ((1, contextlib.nullcontext()), (2, pytest.raises(DataError, match="of an older version"))):
    with start(make_config(TextConfig(str(tmp_path / "a.jsonl")), streams=streams)) as pipeline:
      next(pipeline)
      old = pipeline.position | {"streams": {name: at[:4] for name, at in pipeline.position["streams"].items()}}
      with says:
        pipeline.restore(old)


def test_data_without_an_example_is_an_error_not_an_endless_wait(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "", "split": "train"}])
  config = make_config(TextConfig(str(tmp_path / "a.jsonl")), streams=2)
  with start(config) as pipeline, pytest.raises(DataError, match="split 'train': holds no example for stream 0 of 2"):
    next(pipeline)


class Crawl:
  """A shard of 300 blocks of 40 documents, whose lengths differ as those of web pages do."""

  num_shards, supervised, varies, fingerprint, skipped = 1, False, False, "", 0

  def __init__(self):
    self.read = 0

  def blocks(self, shard, start, epoch):
    for block in range(300):
      self.read += 1
      if block >= start:
        lengths = np.minimum(np.exp(np.random.default_rng(block).normal(3, 1, 40)).astype(int) + 1, 64)
        yield Documents(Ragged(np.ones(lengths.sum(), np.int32), np.append(0, lengths.cumsum())))


def shared_streams(source, number, made):
  """The streams of packed rows of 64 tokens, and the executor of their one thread; `made` gets the blocks' keys."""
  shape, executor = RowShape("targets", 0, 64), ThreadPoolExecutor(1)
  objective = CausalLMConfig().make(shape, make_vocabulary(make_config(TextConfig("a"))))

  def counted(documents, key):
    made.append(key)
    return objective(documents, key)

  rules = StreamRules(counted, shape, number, seed=0, pack=True, endless=True, shuffled=True)
  maker = RowMaker(rules, BlockReader(source, 3))
  return [RowStream(rules, maker, index, executor, StreamPosition()) for index in range(number)], executor


def test_streams_that_share_a_shard_stay_together_and_read_and_make_every_block_once():
  source, made, number = Crawl(), [], 8
  streams, executor = shared_streams(source, number, made)
  blocks = np.zeros(number, int)
  with executor:
    while blocks.max() < 290:
      for stream in streams:
        stream.take()
      blocks = np.array([stream.position.block for stream in streams])
      assert np.ptp(blocks) <= 1
  assert source.read <= 293 and len(made) == len(set(made)) == source.read


def test_a_missing_vocabulary_is_named(corpus):
  with pytest.raises(ConfigError, match="vocabulary"):
    start(make_config(TextConfig(corpus), vocabulary="none.model"))
