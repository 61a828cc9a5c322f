"""Reading seqio tasks and TFDS datasets. Only this module imports TensorFlow.

A registered task gives token ids by its own preprocessors; of a TFDS dataset, one feature is plain text. Both are read
shard by shard and in order. Shuffling is the pipeline's, so that a position in the data is a few integers.
"""

import importlib
import itertools
import os
from collections.abc import Iterator, Mapping

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from moe.config import ConfigError, require
from moe.data.documents import Documents, Ragged, stable_hash
from moe.data.errors import DataError
from moe.data.source import TextSource, require_split
from moe.data.sources.task import TaskConfig
from moe.data.vocabulary import EOS, Vocabulary

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
    ConfigError: no such module, task, dataset, split or text feature; or the task has another vocabulary.
  """
  # TensorFlow would otherwise reserve the accelerator's memory.
  tf.config.set_visible_devices([], "GPU")
  for module in config.modules:
    try:
      importlib.import_module(module)
    except ModuleNotFoundError as error:
      raise ConfigError("modules", module, f"expected a module that can be imported ({error})") from None
  if config.task in seqio.TaskRegistry.names():
    return TaskSource(seqio.TaskRegistry.get(config.task), split, vocabulary, lengths, seed)
  mixture = config.task in seqio.MixtureRegistry.names()
  require(not mixture, "task", config.task, "expected a task, not a mixture of tasks")
  return TfdsTextSource(config, split, vocabulary)


class TaskSource:
  """A registered seqio task with the feature `targets`, and perhaps `inputs`.

  Raises:
    ConfigError: the task does not have the split or `targets`, or has another vocabulary.
  """

  varies = True
  skipped = 0

  def __init__(self, task: seqio.Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int):
    self._task, self._split, self._lengths, self._seed = task, split, lengths, seed
    require_split(_whole(split), task.splits, task.name)
    require("targets" in task.output_features, "task", task.name, "expected a task with the feature 'targets'")
    require(not task.requires_caching, "task", task.name, "expected a task that does not need seqio's cache")
    self.supervised = "inputs" in task.output_features
    self._names = ("inputs", "targets") if self.supervised else ("targets",)
    for name in self._names:
      _check_vocabulary(task.output_features[name].vocabulary, task.name, vocabulary)
    shards = task.source.list_shards(split)
    self.num_shards = len(shards)
    self.fingerprint = f"{stable_hash(task.name, split, len(shards)):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    examples = self._dataset(shard, epoch).skip(start * BLOCK_EXAMPLES).as_numpy_iterator()
    while block := list(itertools.islice(examples, BLOCK_EXAMPLES)):
      columns = {name: [_without_eos(example[name]) for example in block] for name in self._names}
      yield Documents(**{name: Ragged.join(arrays) for name, arrays in columns.items()})

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
    ConfigError: the dataset, its split or the feature does not exist, or is not prepared in `data_dir`.
  """

  def __init__(self, config: TaskConfig, split: str, vocabulary: Vocabulary):
    super().__init__(vocabulary)
    where = config.data_dir or "the default TFDS directory"
    try:
      builder = tfds.builder(config.task, data_dir=config.data_dir or None)
    except (ValueError, ImportError, OSError) as error:
      # After its first line, DatasetNotFoundError lists every dataset.
      reason = str(error).splitlines()[0]
      expected = f"expected a registered seqio task, or a TFDS dataset in {where} ({reason})"
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
    self._source = seqio.TfdsDataSource(name, tfds_data_dir=config.data_dir or None, read_only=True)
    self._key, self._split, self._name = key, split, config.task
    self.num_shards = len(self._source.list_shards(split))
    self.fingerprint = f"{stable_hash(name, split, builder.info.splits[split].num_examples):016x}"

  def texts(self, shard: int) -> Iterator[str]:
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    dataset = self._source.get_dataset(split=self._split, shuffle=False, shard_info=info)
    dataset = dataset.map(lambda example: example[self._key]).with_options(_in_order())
    for text in dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
      try:
        yield text.decode()
      except UnicodeDecodeError:
        raise DataError(self._name, f"has text that is not UTF-8 in shard {shard}") from None


def _in_order() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  return options


def _whole(split: str) -> str:
  """The split that a part of one, such as "train[:90%]", belongs to."""
  return split.partition("[")[0]


def _without_eos(ids: np.ndarray) -> np.ndarray:
  """The ids, int32, without an EOS that the task appended: the objective appends its own."""
  ids = np.asarray(ids, np.int32)
  return ids[:-1] if len(ids) and ids[-1] == EOS else ids


def _check_vocabulary(of_task: seqio.Vocabulary, name: str, ours: Vocabulary) -> None:
  expected = f"expected the vocabulary of task {name}, which has {of_task.vocab_size} ids"
  require(of_task.vocab_size <= ours.size, "vocabulary", ours.name, expected)
  if isinstance(of_task, (seqio.SentencePieceVocabulary, seqio.ByteVocabulary)):
    same = list(of_task.encode(_PROBE)) == ours.encode(_PROBE).tolist()
    require(same, "vocabulary", ours.name, f"expected the ids of the vocabulary of task {name}")
