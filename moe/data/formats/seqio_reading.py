"""Reading seqio tasks and TFDS datasets. Only this module imports TensorFlow.

A registered task gives token ids by its own preprocessors; of a TFDS dataset, one feature is plain text. Both are read
shard by shard and in order. Shuffling is the pipeline's, so that a position in the data is a few integers.
"""

import contextlib
import importlib
import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moe.config import ConfigError, first_line, require
from moe.data.documents import Documents, Ragged, check_ids, stable_hash
from moe.data.errors import DataError
from moe.data.quiet_import import quiet_import
from moe.data.source import TextSource, require_split
from moe.data.sources.task import TaskConfig
from moe.data.vocabulary import EOS, Vocabulary

with quiet_import():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

BLOCK_EXAMPLES = 2048
_PROBE = "The quick brown fox, 42 naïve cafés."


def open_task(
  config: TaskConfig, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int
) -> "TaskSource | TfdsTextSource":
  """The registered task of that name, after importing `config.modules`; otherwise the TFDS dataset of that name.

  Args:
    config: what to read.
    split: the task's own name of a split.
    vocabulary: the task's, or what tokenizes a dataset's text.
    lengths: tokens per row of "inputs" and "targets", for the task's preprocessors.
    seed: of the task's preprocessors.

  Raises:
    ConfigError: no such module, task, dataset or text feature; or the task has another vocabulary.
    DataError: no such split, or the data cannot be read.
  """
  # TensorFlow would otherwise reserve the accelerator's memory.
  tf.config.set_visible_devices([], "GPU")
  for module in config.modules:
    try:
      importlib.import_module(module)
    except Exception as error:  # a module is a program: anything can go wrong in it
      wanted = f"expected a module that can be imported ({type(error).__name__}: {first_line(error)})"
      raise ConfigError("modules", module, wanted) from None
  if config.task in seqio.TaskRegistry.names():
    return TaskSource(seqio.TaskRegistry.get(config.task), split, vocabulary, lengths, seed)
  mixture = config.task in seqio.MixtureRegistry.names()
  require(not mixture, "task", config.task, "expected a task, not a mixture of tasks")
  return TfdsTextSource(config, split, vocabulary)


class TaskSource:
  """A registered seqio task with the feature `targets`, and perhaps `inputs`.

  Raises:
    ConfigError: the task does not have `targets`, or has another vocabulary. DataError: it does not have the split, or
      cannot be read; while reading, also an id beyond the vocabulary.
  """

  varies = True
  skipped = 0

  def __init__(self, task: seqio.Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int):
    self._task, self._split, self._lengths, self._seed = task, split, lengths, seed
    self._vocabulary_size = vocabulary.size
    with _one_line(task.name):
      require_split(_whole(split), task.splits, task.name)
    require("targets" in task.output_features, "task", task.name, "expected a task with the feature 'targets'")
    require(not task.requires_caching, "task", task.name, "expected a task that does not need seqio's cache")
    self.supervised = "inputs" in task.output_features
    self._names = ("inputs", "targets") if self.supervised else ("targets",)
    for name in self._names:
      _check_vocabulary(task.output_features[name].vocabulary, task.name, vocabulary)
    with _one_line(task.name):
      self.num_shards = len(task.source.list_shards(split))
    self.fingerprint = f"{stable_hash(task.name, split, self.num_shards):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    where = f"{self._task.name}, split {self._split}, shard {shard}"
    first = start * BLOCK_EXAMPLES
    with _one_line(where):
      examples = self._dataset(shard, epoch).skip(first).as_numpy_iterator()
    while block := _take(examples, BLOCK_EXAMPLES, where):
      yield Documents(**{name: self._ids(block, name, where, first) for name in self._names})
      first += len(block)

  def _ids(self, examples: list[dict[str, np.ndarray]], name: str, where: str, first: int) -> Ragged:
    """A feature of some examples, int32; without an EOS that the task appended, since the objective appends its own."""
    found = [np.asarray(example[name]) for example in examples if name in example]
    is_ids = len(found) == len(examples) and found[0].ndim == 1 and np.issubdtype(found[0].dtype, np.integer)
    if not is_ids:
      raise DataError(where, f"has no feature {name!r} of token ids after the task's preprocessors")
    ids = Ragged.join([array[:-1] if len(array) and array[-1] == EOS else array for array in found])
    check_ids(ids, self._vocabulary_size, lambda i: f"{where}, example {first + i}")
    return Ragged(ids.flat.astype(np.int32), ids.offsets)

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._task.name, "is a seqio task, which gives token ids and no text")

  def _dataset(self, shard: int, epoch: int) -> tf.data.Dataset:
    """The shard after the task's preprocessors, whose randomness depends only on seed, epoch and shard."""
    seed = stable_hash(self._seed, epoch, shard) % 2**31
    source = self._task.source
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    # No seed, since the source is read in order, and some sources do not accept one.
    dataset = source.get_dataset(split=self._split, shuffle=False, seed=None, shard_info=info)
    dataset = self._task.preprocess_precache(dataset, seed=seed)
    dataset = self._task.preprocess_postcache(dataset, sequence_length=self._lengths, seed=seed)
    return dataset.with_options(_in_order())


class TfdsTextSource(TextSource):
  """A text feature of a prepared TFDS dataset.

  Raises:
    ConfigError: the dataset or the feature does not exist, or is not prepared in `data_dir`. DataError: the split does
      not exist, or cannot be read.
  """

  def __init__(self, config: TaskConfig, split: str, vocabulary: Vocabulary):
    super().__init__(vocabulary)
    where = config.data_dir or "the default TFDS directory"
    data_dir = os.path.expanduser(config.data_dir) or None
    try:
      builder = tfds.builder(config.task, data_dir=data_dir)
    except Exception as error:  # TFDS raises a dozen kinds
      expected = f"expected a registered seqio task, or a TFDS dataset in {where} ({first_line(error)})"
      raise ConfigError("task", config.task, expected) from None
    prepared = bool(builder.info.splits)
    require(prepared, "task", config.task, f"expected a dataset prepared in {where}; run tfds build first")
    require_split(_whole(split), builder.info.splits, config.task)
    features = builder.info.features
    key = config.text_key
    require(key in features, "text_key", key, f"expected a feature of {config.task}: {', '.join(features)}")
    is_text = features[key].dtype in (str, tf.string, np.dtype(object))
    require(is_text, "text_key", key, f"expected a text feature of {config.task}")
    name = ":".join(builder.info.full_name.rsplit("/", 1))
    self._key, self._split, self._name = key, split, config.task
    with _one_line(config.task):
      self._source = seqio.TfdsDataSource(name, tfds_data_dir=data_dir, read_only=True)
      self.num_shards = len(self._source.list_shards(split))
    self.fingerprint = f"{stable_hash(name, split, builder.info.splits[split].num_examples):016x}"

  def texts(self, shard: int) -> Iterator[str]:
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    where = f"{self._name}, split {self._split}, shard {shard}"
    with _one_line(where):
      dataset = self._source.get_dataset(split=self._split, shuffle=False, shard_info=info)
      dataset = dataset.map(lambda example: example[self._key]).with_options(_in_order())
      texts = dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    number = 0
    while block := _take(texts, 16, where):
      for text in block:
        try:
          yield text.decode()
        except UnicodeDecodeError:
          raise DataError(f"{where}, example {number}", "has text that is not UTF-8") from None
        number += 1


def _take(examples: Iterator[Any], number: int, where: str) -> list[Any]:
  """The next examples, at most `number`; none after the last."""
  with _one_line(where):  # not around a `yield`: a generator may end with the process, when no names are left
    return list(itertools.islice(examples, number))


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
  """Reports in one line whatever goes wrong in TensorFlow, TFDS, or a task's own functions."""
  try:
    yield
  except (ConfigError, DataError):
    raise
  except Exception as error:
    raise DataError(name, f"cannot be read ({type(error).__name__}: {first_line(error)})") from error


def _in_order() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  return options


def _whole(split: str) -> str:
  """The split that a part of one, such as "train[:90%]", belongs to."""
  return split.partition("[")[0]


def _check_vocabulary(of_task: seqio.Vocabulary, name: str, ours: Vocabulary) -> None:
  expected = f"expected the vocabulary of task {name}, which has {of_task.vocab_size} ids"
  require(of_task.vocab_size <= ours.size, "config.data.vocabulary", ours.name, expected)
  if isinstance(of_task, (seqio.SentencePieceVocabulary, seqio.ByteVocabulary)):
    same = list(of_task.encode(_PROBE)) == ours.encode(_PROBE).tolist()
    require(same, "config.data.vocabulary", ours.name, f"expected the ids of the vocabulary of task {name}")
