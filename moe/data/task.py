"""seqio tasks and TFDS data sets by name (Roberts et al. 2022, "Scaling Up Models and Data with t5x and seqio").

A registered task gives token ids by its own preprocessors; of a TFDS data set one feature is plain text. Both are read
shard by shard and in order: shuffling is the pipeline's, so that a place in the data is a few integers. TensorFlow is
imported here and nowhere else.
"""

import importlib
import itertools
import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from moe.config import ConfigError, require
from moe.data.data_config import DataConfig
from moe.data.documents import Documents, Ragged, TextSource, stable_hash
from moe.data.errors import DataError
from moe.data.vocabulary import EOS, Vocabulary

BLOCK_EXAMPLES = 2048
_PROBE = "The quick brown fox, 42 naïve cafés."


def make_task_source(config: DataConfig, split: str, vocabulary: Vocabulary) -> "TaskSource | TfdsTextSource":
  """The task registered by that name, after importing `config.modules`; else the TFDS data set of that name.

  Raises:
    ConfigError: no such module, task, data set, split or text feature; a task of another vocabulary.
  """
  # TensorFlow would otherwise take the accelerator's memory for itself.
  tf.config.set_visible_devices([], "GPU")
  for module in config.modules:
    try:
      importlib.import_module(module)
    except ModuleNotFoundError as error:
      raise ConfigError("modules", module, f"cannot be imported ({error})") from None
  split = {"train": config.train_split, "validation": config.validation_split}.get(split, split)
  if config.task in seqio.TaskRegistry.names():
    return TaskSource(seqio.TaskRegistry.get(config.task), config, split, vocabulary)
  mixture = config.task in seqio.MixtureRegistry.names()
  require(not mixture, "task", config.task, "is a mixture; name one of its tasks")
  return TfdsTextSource(config, split, vocabulary)


class TaskSource:
  """A registered seqio task with features `targets` and perhaps `inputs`.

  Raises:
    ConfigError: the task has no such split, no `targets`, or ids of another vocabulary.
  """

  varies = True

  def __init__(self, task: seqio.Task, config: DataConfig, split: str, vocabulary: Vocabulary):
    self._task, self._split, self._seed = task, split, config.seed
    _require_split(task.splits, split, task.name)
    require("targets" in task.output_features, "task", task.name, "has no feature 'targets'")
    require(not task.requires_caching, "task", task.name, "must be cached by seqio first, which is not supported")
    self.supervised = "inputs" in task.output_features
    self._names = ("inputs", "targets") if self.supervised else ("targets",)
    for name in self._names:
      _check_vocabulary(task.output_features[name].vocabulary, task.name, vocabulary)
    self._lengths = {"inputs": config.inputs_length, "targets": config.targets_length}
    shards = task.source.list_shards(split)
    self.num_shards = len(shards)
    self.fingerprint = f"{stable_hash(task.name, split, len(shards)):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    examples = self._dataset(shard, epoch).skip(start * BLOCK_EXAMPLES).as_numpy_iterator()
    while block := list(itertools.islice(examples, BLOCK_EXAMPLES)):
      columns = {name: [_without_eos(example[name]) for example in block] for name in self._names}
      yield Documents(**{name: Ragged.join(arrays) for name, arrays in columns.items()})

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._task.name, "is a seqio task, which gives ids, no text")

  def _dataset(self, shard: int, epoch: int) -> tf.data.Dataset:
    """The shard after the task's preprocessors, whose own randomness is a function of seed, epoch and shard."""
    seed = stable_hash(self._seed, epoch, shard) % 2**31
    source = self._task.source
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    # Only the preprocessors may need the seed, since the source is read in order; some sources refuse one.
    dataset = source.get_dataset(split=self._split, shuffle=False, seed=None, shard_info=info)
    dataset = self._task.preprocess_precache(dataset, seed=seed)
    dataset = self._task.preprocess_postcache(dataset, sequence_length=self._lengths, seed=seed)
    return dataset.with_options(_in_order())


class TfdsTextSource(TextSource):
  """A text feature of a prepared TFDS data set.

  Raises:
    ConfigError: the data set, its split or the feature does not exist, or is not prepared in `data_dir`.
  """

  def __init__(self, config: DataConfig, split: str, vocabulary: Vocabulary):
    super().__init__(vocabulary)
    where = config.data_dir or "the default TFDS directory"
    try:
      builder = tfds.builder(config.task, data_dir=config.data_dir or None)
    except (ValueError, ImportError, OSError) as error:
      # DatasetNotFoundError goes on to list every data set there is.
      reason = str(error).splitlines()[0]
      raise ConfigError("task", config.task, f"is neither a registered seqio task nor in {where} ({reason})") from None
    require(bool(builder.info.splits), "task", config.task, f"is not prepared in {where}; run tfds build first")
    _require_split(builder.info.splits, split, config.task)
    features = builder.info.features
    wanted = f"{config.task} has {', '.join(features)}"
    require(config.text_key in features, "text_key", config.text_key, wanted)
    wanted = f"is not a text feature of {config.task}"
    require(features[config.text_key].dtype in (str, tf.string, np.dtype(object)), "text_key", config.text_key, wanted)
    name = ":".join(builder.info.full_name.rsplit("/", 1))
    self._source = seqio.TfdsDataSource(name, tfds_data_dir=config.data_dir or None, read_only=True)
    self._key, self._split, self._name = config.text_key, split, config.task
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
        raise DataError(self._name, f"holds text that is not UTF-8 in shard {shard}") from None


def _in_order() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  return options


def _require_split(splits, split: str, name: str) -> None:
  # "train[:90%]" is a part of "train".
  require(split.split("[")[0] in splits, "split", split, f"{name} has {', '.join(splits)}")


def _without_eos(ids: np.ndarray) -> np.ndarray:
  """The ids, int32, without an EOS that the task put at their end: the objective appends its own."""
  ids = np.asarray(ids, np.int32)
  return ids[:-1] if len(ids) and ids[-1] == EOS else ids


def _check_vocabulary(of_task: seqio.Vocabulary, name: str, ours: Vocabulary) -> None:
  wanted = f"must be the one of task {name}, which has {of_task.vocab_size} ids"
  require(of_task.vocab_size <= ours.size, "vocabulary", ours.name, wanted)
  if isinstance(of_task, (seqio.SentencePieceVocabulary, seqio.ByteVocabulary)):
    same = list(of_task.encode(_PROBE)) == ours.encode(_PROBE).tolist()
    require(same, "vocabulary", ours.name, f"gives other ids than the vocabulary of task {name}")
