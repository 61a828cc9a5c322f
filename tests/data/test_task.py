"""seqio tasks and TFDS datasets by name."""

import pathlib
import shutil
import subprocess
import sys

import pytest
import seqio
import tensorflow as tf

from moe.config import ConfigError
from moe.data import DataError, load_vocabulary, make_pipeline, make_source, make_vocabulary, validation_text
from moe.data.formats.seqio_reading import TaskSource
from moe.data.sources.task import TaskConfig
from tests.data.conftest import assert_same_batches, make_config, make_texts, segments
from tests.data.seqio_tasks import PLAIN, lines

MODULE = "tests.data.seqio_tasks"


def task(name: str, **changes):
  return make_config(TaskConfig(name, modules=(MODULE,)), **changes)


def open_source(config, split="train"):
  return make_source(config, split, make_vocabulary(config))


def documents(config, split="train", epoch=0, start=0) -> list[str]:
  source, vocabulary = open_source(config, split), make_vocabulary(config)
  blocks = [block for shard in range(source.num_shards) for block in source.blocks(shard, start, epoch)]
  return [vocabulary.decode(block.targets[i]) for block in blocks for i in range(len(block))]


@pytest.mark.parametrize("name", ["moe_test_lines", "moe_test_eos"])
def test_a_task_gives_its_documents_in_order_without_eos(name):
  assert documents(task(name)) == make_texts(36)


def test_reading_from_a_later_block_skips_exactly_those_before(small_blocks):
  assert documents(task("moe_test_lines"), start=3) == make_texts(36)[15:]


def test_a_source_of_another_size_is_other_data():
  def fingerprint(number):
    sizes = {"train": number, "validation": 1}
    source = seqio.FunctionDataSource(lines, splits=tuple(sizes), num_input_examples=sizes)
    made = seqio.Task("moe_test_sized", source, PLAIN, [seqio.preprocessors.tokenize])
    return TaskSource(made, "train", load_vocabulary("bytes", 100), {"targets": 16}, 0).fingerprint

  assert fingerprint(100) == fingerprint(100) != fingerprint(37)


def test_random_preprocessors_depend_on_the_epoch_and_nothing_else():
  config = task("moe_test_noisy")
  assert documents(config, epoch=1) == documents(config, epoch=1)
  assert documents(config, epoch=1) != documents(config, epoch=2)


def test_resuming_repeats_the_random_preprocessing(small_blocks):
  config = task("moe_test_noisy")
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    for _ in range(60):
      next(pipeline)
    position = pipeline.position
    expected = [next(pipeline) for _ in range(3)]
  assert position["streams"]["0"][0] >= 1
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as resumed:
    resumed.restore(position)
    for batch in expected:
      assert_same_batches(next(resumed), batch)


def test_pairs_keep_inputs_and_targets_together():
  config = task("moe_test_pairs", objective="text_to_text")
  vocabulary, found = make_vocabulary(config), []
  for batch in make_pipeline(config, "inputs_and_targets", "train", training=False):
    for inputs, targets in zip(segments(batch, "inputs"), segments(batch, "targets"), strict=True):
      assert inputs[-1] == targets[-1] == 1 and 1 not in inputs[:-1] + targets[:-1]
      found.append((vocabulary.decode(inputs), vocabulary.decode(targets)))
  assert sorted(found) == sorted((f"square {n}", str(n)) for n in range(30))


def test_files_are_shards_and_every_line_is_read_once(tmp_path):
  texts = [text.replace("\n", " ") for text in make_texts(30)]
  for number in range(3):
    (tmp_path / f"{number}.txt").write_text("\n".join(texts[number::3]))
  seqio.TaskRegistry.add(
    "moe_test_files",
    source=seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")}),
    preprocessors=[lambda dataset: dataset.map(lambda line: {"targets": line}), seqio.preprocessors.tokenize],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
  )
  try:
    assert open_source(task("moe_test_files")).num_shards == 3
    assert sorted(documents(task("moe_test_files"))) == sorted(texts)
  finally:
    seqio.TaskRegistry.remove("moe_test_files")


def test_a_tfds_dataset_gives_its_text(data_dir):
  config = make_config(TaskConfig("offline_text/wikitext2_eval", data_dir=str(data_dir / "tfds")))
  text = validation_text(config).decode()
  assert len(text) > 1_000_000
  assert text == "".join(documents(config, "validation"))


def test_c4_resumes_where_it_stopped(data_dir):
  config = make_config(
    TaskConfig("c4/en:3.1.0", data_dir=str(data_dir / "tfds")),
    objective="span_corruption",
    inputs_length=512,
    targets_length=114,
  )
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    for _ in range(3):
      next(pipeline)
    position, expected = pipeline.position, next(pipeline)
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as resumed:
    resumed.restore(position)
    assert_same_batches(next(resumed), expected)


def test_a_part_of_a_split_is_a_split(data_dir):
  where = {"task": "c4/en:3.1.0", "data_dir": str(data_dir / "tfds")}
  whole = documents(make_config(TaskConfig(**where)))
  parts = make_config(TaskConfig(**where, train_split="train[:90%]", validation_split="train[90%:]"))
  assert documents(parts, "train") + documents(parts, "validation") == whole


@pytest.mark.parametrize(
  ("fields", "changes", "field", "problem"),
  [
    ({"task": "moe_no_such_task"}, {}, "source.task", "expected a registered seqio task, or a TFDS dataset in"),
    ({"task": "glue/sst2", "data_dir": "."}, {}, "source.task", "expected a dataset prepared in"),
    ({"modules": ("no.such.module",)}, {}, "source.modules", "expected a module that can be imported"),
    ({}, {"extra_ids": 0}, "vocabulary", "which has 359 ids"),
    ({}, {"vocabulary": "configs/vocabularies/python_2k.model"}, "vocabulary", "expected the ids of the vocabulary of"),
    ({"task": "moe_test_pairs"}, {}, "objective", "expected one of text_to_text, .* pairs of inputs and targets"),
    ({}, {"objective": "text_to_text"}, "objective", "expected one of .*prefix_lm.* plain text"),
  ],
)
def test_each_wrong_task_is_rejected_in_one_line(fields, changes, field, problem, pytestconfig, monkeypatch):
  monkeypatch.chdir(pytestconfig.rootpath)
  config = make_config(TaskConfig(**({"task": "moe_test_lines", "modules": (MODULE,)} | fields)), **changes)
  with pytest.raises(ConfigError, match=problem) as error:
    make_pipeline(config, "inputs_and_targets", "train", training=True)
  assert error.value.field == f"config.data.{field}"
  assert "\n" not in str(error.value)


def test_a_split_that_the_task_does_not_have_is_rejected():
  with pytest.raises(DataError, match="split 'test': expected one of train, validation, the splits of moe_test_lines"):
    open_source(task("moe_test_lines"), "test")


@pytest.fixture
def add_task():
  """Registers a task of the test's own until its end; `preprocessor` maps each example to what the task gives."""
  names = []

  def add(preprocessor, vocabulary):
    names.append(f"moe_test_{len(names)}")
    source = seqio.FunctionDataSource(
      lambda split, shuffle_files: tf.data.Dataset.range(3, output_type=tf.int64), splits=("train",)
    )
    seqio.TaskRegistry.add(
      names[-1],
      source=source,
      preprocessors=[lambda dataset: dataset.map(preprocessor)],
      output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
    )
    return names[-1]

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)


@pytest.mark.parametrize("wrong", [359, -1, 2**40])
def test_an_id_beyond_the_vocabulary_is_named_with_its_example(add_task, wrong):
  name = add_task(
    lambda n: {"targets": tf.stack([5, tf.where(n == 2, tf.constant(wrong, tf.int64), n)])},
    seqio.PassThroughVocabulary(359),
  )
  with pytest.raises(DataError, match=rf"shard 0, example 2: has id {wrong} at position 1: expected ids from 0 to 358"):
    documents(task(name))


@pytest.mark.parametrize(
  ("preprocessor", "problem"),
  [
    (lambda n: {"inputs": tf.stack([n])}, "targets"),
    (lambda n: {"targets": tf.constant([0.5])}, "float|token ids"),
    (lambda n: {"targets": tf.debugging.check_numerics([tf.constant(float("nan"))], "not finite")}, "not finite"),
    (lambda n: {"targets": n["text"]}, "cannot be read"),
  ],
  ids=["no feature", "no ids", "fails while reading", "fails at once"],
)
def test_a_task_that_does_not_work_is_one_line(add_task, preprocessor, problem):
  with pytest.raises(DataError, match=problem) as error:
    documents(task(add_task(preprocessor, seqio.PassThroughVocabulary(359))))
  assert "\n" not in str(error.value)


def test_truncated_records_are_named_with_their_shard(data_dir, tmp_path):
  parts = pathlib.Path("offline_text", "wikitext2_eval")
  shutil.copytree(data_dir / "tfds" / parts, tmp_path / parts)
  for path in (tmp_path / parts).rglob("*validation*.tfrecord*"):
    path.write_bytes(path.read_bytes()[:-100])
  config = make_config(TaskConfig(str(parts), data_dir=str(tmp_path)))
  with pytest.raises(DataError, match=r"eval, split validation, shard 0: cannot be read \(DataLossError") as error:
    documents(config, "validation")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["c4/en:9.9.9", "c4/zz", "c4/en:", "c4/en:3.1.0/more", "../c4", "no such data set"])
def test_a_dataset_or_version_that_does_not_exist_is_one_line(data_dir, name):
  with pytest.raises(ConfigError, match=r"^config\.data\.source\.task = .*: expected a registered seqio task") as error:
    open_source(make_config(TaskConfig(name, data_dir=str(data_dir / "tfds"))))
  assert "\n" not in str(error.value)


def test_reading_prints_nothing_of_tensorflows_log(monkeypatch):
  monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
  program = """
from moe.data import make_pipeline
from tests.data.conftest import make_config
from moe.data.sources.task import TaskConfig
config = make_config(TaskConfig("moe_test_lines", modules=("tests.data.seqio_tasks",)))
with make_pipeline(config, "inputs_and_targets", "train", training=False) as pipeline:
  next(pipeline)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "failing_tasks.py").write_text("undefined")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ConfigError, match=r"modules = 'failing_tasks': .*\(NameError: name 'undefined' is not defined\)"):
    open_source(make_config(TaskConfig("moe_test_lines", modules=("failing_tasks",))))


def test_a_dataset_without_the_named_feature_is_rejected(data_dir):
  where = {"task": "glue/sst2", "data_dir": str(data_dir / "tfds")}
  with pytest.raises(ConfigError, match="text_key = 'text': expected a feature of glue/sst2: sentence, label, idx"):
    open_source(make_config(TaskConfig(**where)))
  with pytest.raises(ConfigError, match="text_key = 'label': expected a text feature of glue/sst2"):
    open_source(make_config(TaskConfig(**where, text_key="label")))


def test_random_preprocessing_differs_in_the_next_epoch():
  config = task("moe_test_noisy", batch_size=36, pack=False, shuffle=False, inputs_length=600, targets_length=600)
  with make_pipeline(config, "targets", "train", training=True) as pipeline:
    first, second = next(pipeline), next(pipeline)
  assert second["targets"].shape == (36, 1200)
  differing = (first["targets"] != second["targets"]).sum(axis=1)
  assert (differing <= 1).all() and differing.sum() > 20
