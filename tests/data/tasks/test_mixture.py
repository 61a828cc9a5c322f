"""Mixtures, parts, caches and metrics of a user's own seqio tasks, from memory."""

import collections
import dataclasses
import functools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from moe.config import ConfigError
from moe.data import DataError, load_vocabulary, make_pipeline
from moe.data.formats import seqio_mixture, seqio_registry
from moe.data.formats.seqio_reading import part_bounds
from moe.data.sources.task import TaskConfig
from moe.data.tasks import open_scored_tasks
from tests.data.conftest import assert_same_batches, make_config

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)
OURS = load_vocabulary("bytes", 100)
LENGTHS = {"inputs": 64, "targets": 32}
SIZES = {"a": 30, "b": 10, "c": 7}


def letters(correct: str):
  def metric(targets, predictions):
    return {"right": sum(t == p for t, p in zip(targets, predictions)) / len(targets), "text": correct}

  return metric


def add_task(name: str, vocabulary=VOCABULARY, metric_fns=(), between=()) -> None:
  def rows(split, shuffle_files):
    assert not shuffle_files
    numbers = [str(i) for i in range(SIZES[name[-1]] if split == "train" else 4)]
    return tf.data.Dataset.from_tensor_slices({"inputs": [f"{name[-1]} {n}" for n in numbers], "targets": numbers})

  feature = seqio.Feature(vocabulary, add_eos=True)
  count = {"train": SIZES[name[-1]], "validation": 4}
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(rows, splits=("train", "validation"), num_input_examples=count),
    preprocessors=[seqio.preprocessors.tokenize, *between, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=lambda text, example, is_target: text if is_target else text.upper(),
    metric_fns=list(metric_fns),
  )


@pytest.fixture(scope="module", autouse=True)
def registered():
  for letter in "abc":
    add_task(f"moe_mix_{letter}", metric_fns=[letters("?")] if letter != "c" else [])
  add_task("moe_other_c", vocabulary=seqio.ByteVocabulary(extra_ids=200))
  add_task("moe_cached_c", between=[seqio.CacheDatasetPlaceholder(required=True)])
  capped = functools.partial(seqio.mixing_rate_num_examples, maximum=20)
  warm = functools.partial(seqio.mixing_rate_num_examples, temperature=2.0)
  seqio.MixtureRegistry.add("moe_fixed", [("moe_mix_a", 1), ("moe_mix_b", 3)])
  seqio.MixtureRegistry.add("moe_capped", ["moe_mix_a", "moe_mix_b"], default_rate=capped)
  seqio.MixtureRegistry.add("moe_warm", ["moe_mix_a", "moe_mix_b"], default_rate=warm)
  seqio.MixtureRegistry.add("moe_nested", [("moe_fixed", 8), ("moe_mix_c", 2)])
  seqio.MixtureRegistry.add("moe_unlike", [("moe_mix_a", 1), ("moe_other_c", 1)])
  yield
  for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
    for name in [name for name in registry.names() if name.startswith("moe_") and not name.startswith("moe_test")]:
      registry.remove(name)


@pytest.fixture
def blocks_of_eight(monkeypatch):
  monkeypatch.setattr(seqio_mixture, "BLOCK_EXAMPLES", 8)


def open_source(name: str, split: str = "train", **fields):
  return seqio_registry.open_task(TaskConfig(name, **fields), split, OURS, LENGTHS, seed=3)


def read(source, epoch: int = 0, start: int = 0) -> list[list[str]]:
  """The inputs of every block."""
  return [[OURS.decode(block.inputs[i]) for i in range(len(block))] for block in source.blocks(0, start, epoch)]


def flat(blocks: list[list[str]]) -> list[str]:
  return [text for block in blocks for text in block]


@pytest.mark.parametrize(
  ("name", "shares"),
  [
    ("moe_fixed", {"a": 1 / 4, "b": 3 / 4}),
    ("moe_capped", {"a": 20 / 30, "b": 10 / 30}),
    ("moe_warm", {"a": 30**0.5 / (30**0.5 + 10**0.5), "b": 10**0.5 / (30**0.5 + 10**0.5)}),
    ("moe_nested", {"a": 0.8 / 4, "b": 0.8 * 3 / 4, "c": 0.2}),
  ],
)
def test_after_every_block_each_task_has_had_its_share_to_within_one_example(name, shares, blocks_of_eight):
  source = open_source(name)
  blocks = [block for epoch in range(4) for block in read(source, epoch)]
  seen = collections.Counter()
  for number, block in enumerate(blocks, 1):
    seen.update(text[0] for text in block)
    for letter, share in shares.items():
      assert abs(seen[letter] - 8 * number * share) <= 1


def test_every_task_is_read_in_turn_and_again_from_where_it_stopped(blocks_of_eight):
  """An epoch is 40 rows: 10 of a, 30 of b, which has 10."""
  source = open_source("moe_fixed")
  for epoch in range(3):
    texts = flat(read(source, epoch))
    assert [text for text in texts if text[0] == "a"] == [f"a {i}" for i in range(10 * epoch, 10 * epoch + 10)]
    assert collections.Counter(text for text in texts if text[0] == "b") == {f"b {i}": 3 for i in range(10)}


def test_a_block_is_the_same_wherever_reading_began(blocks_of_eight):
  source = open_source("moe_nested")
  whole = [read(source, epoch) for epoch in range(3)]
  for epoch, start in [(0, 3), (1, 0), (1, 4), (2, 5)]:
    assert read(open_source("moe_nested"), epoch, start) == whole[epoch][start:]


def test_validation_reads_every_example_once_and_mixes_them_evenly(blocks_of_eight):
  blocks = read(open_source("moe_nested", "validation"))
  assert sorted(flat(blocks)) == sorted(f"{letter} {i}" for letter in "abc" for i in range(4))
  assert [text[0] for text in blocks[0][:3]] == ["a", "b", "c"]


def test_a_mixture_resumes_in_its_middle_and_is_the_same_on_two_hosts(blocks_of_eight):
  config = make_config(TaskConfig("moe_nested"), objective="text_to_text", streams=2)

  def start(rows=None):
    return make_pipeline(config, "inputs_and_targets", "train", training=True, rows=rows)

  with start() as pipeline:
    batches = [next(pipeline) for _ in range(12)]
    position, expected = json.loads(json.dumps(pipeline.position)), [next(pipeline) for _ in range(6)]
  assert position["streams"]["0"] != [0] * 5
  with start() as resumed:
    resumed.restore(position)
    for batch in expected:
      assert_same_batches(next(resumed), batch)
  with start(np.array([0, 1])) as first, start(np.array([2, 3])) as second:
    for batch in batches:
      parts = next(first), next(second)
      assert_same_batches({name: np.concatenate([part[name] for part in parts]) for name in batch}, batch)


def test_a_mixture_with_another_vocabulary_is_one_line_that_names_the_task():
  with pytest.raises(ConfigError, match=r"^config.data.vocabulary = 'bytes': .* task moe_other_c, which has 459 ids$"):
    open_source("moe_unlike")


@pytest.mark.parametrize(
  ("part", "bounds"),
  [
    ("train[:90%]", (0, 27)),
    ("train[90%:]", (27, 30)),
    ("train[5:]", (5, 30)),
    ("train[-5:]", (25, 30)),
    ("train[:-10%]", (0, 27)),
    ("train[20:10]", (20, 20)),
    ("train[:99]", (0, 30)),
  ],
)
def test_a_part_of_a_split_has_the_bounds_of_tfds(part, bounds):
  assert part_bounds(part, 30) == bounds


def test_the_parts_of_any_tasks_split_are_the_whole():
  first, second = (flat(read(open_source("moe_mix_a", train_split=p))) for p in ("train[:90%]", "train[90%:]"))
  assert (len(first), len(second)) == (27, 3)
  assert first + second == flat(read(open_source("moe_mix_a")))
  with pytest.raises(DataError, match=r"split 'train\[x\]': expected a split, or a part of one such as 'train"):
    open_source("moe_mix_a", train_split="train[x]")


def write_cache(folder, name: str, rows: list[tuple[list[int], list[int]]]) -> None:
  """A task's cache as `seqio_cache_tasks` leaves it."""
  folder = folder / name
  folder.mkdir(parents=True)
  feature = {"shape": [None], "dtype": "int32"}
  info = {"num_shards": 1, "features": {"inputs": feature, "targets": feature}, "seqio_version": "0.0.20"}
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text(json.dumps({"examples": len(rows)}))
  (folder / "COMPLETED").touch()
  with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as file:
    for inputs, targets in rows:
      features = {
        key: tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
        for key, ids in {"inputs": inputs, "targets": targets}.items()
      }
      file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def test_a_cached_task_is_read_from_its_cache(tmp_path):
  with pytest.raises(
    ConfigError, match=r"cache_dirs = .*: expected the folder with seqio's cache of task moe_cached_c"
  ):
    open_source("moe_cached_c")
  write_cache(tmp_path, "moe_cached_c", [([70, 71], [80]), ([72], [81, 82]), ([73], [83])])
  where = {"cache_dirs": (str(tmp_path),)}
  [block] = open_source("moe_cached_c", **where).blocks(0, 0, 0)
  assert [block.inputs[i].tolist() for i in range(3)] == [[70, 71], [72], [73]]
  assert [block.targets[i].tolist() for i in range(3)] == [[80], [81, 82], [83]]
  assert len(flat(read(open_source("moe_cached_c", train_split="train[1:]", **where)))) == 2
  with pytest.raises(DataError, match="split 'validation': expected one of train, the splits of moe_cached_c"):
    open_source("moe_cached_c", "validation", **where)


def test_a_users_own_task_is_scored_by_its_own_functions():
  [task] = open_scored_tasks(TaskConfig("moe_mix_a"), OURS, LENGTHS)
  found = list(task.examples("validation"))
  assert [(example.text, example.target) for example in found] == [(f"a {i}", str(i)) for i in range(4)]
  assert found[0].inputs.tolist() == OURS.encode("a 0").tolist()
  assert task.postprocess("x", found[0]) == "X"
  # Of what the metrics report, numbers are kept.
  assert task.evaluate([example.target for example in found], ["0", "1", "X", "3"]) == {"right": 3 / 4}
  assert (task.labels, task.metric, task.server_file(found, ["0"] * 4)) == ((), "", None)


def test_of_a_mixture_the_tasks_with_metrics_are_scored_and_without_any_it_is_refused():
  assert [task.name for task in open_scored_tasks(TaskConfig("moe_nested"), OURS, LENGTHS)] == [
    "moe_mix_a",
    "moe_mix_b",
  ]
  expected = "^config.data.source.task = 'moe_mix_c': expected a seqio task with metric_fns"
  with pytest.raises(ConfigError, match=expected):
    open_scored_tasks(TaskConfig("moe_mix_c"), OURS, LENGTHS)


@pytest.mark.parametrize(
  ("metric", "said"),
  [
    (
      lambda targets, predictions: {"right": 1 / 0},
      "one of its metric_fns fails (ZeroDivisionError: division by zero)",
    ),
    (lambda *given: None, "one of its metric_fns fails (TypeError: 'NoneType' object is not iterable)"),
    (lambda *given: {"text": "?"}, "expected a number from one of its metric_fns(targets, predictions)"),
  ],
)
def test_a_users_metric_that_gives_no_number_is_one_line(metric, said):
  [task] = open_scored_tasks(TaskConfig("moe_mix_a"), OURS, LENGTHS)
  with pytest.raises(DataError) as caught:
    dataclasses.replace(task, metric_fns=(metric,)).evaluate(["1"], ["1"])
  assert str(caught.value) == f"moe_mix_a: {said}"
