"""Reading seqio tasks and TFDS datasets. Imports TensorFlow: import it where it is needed.

A registered task gives token ids by its own preprocessors; of a TFDS dataset, one feature is plain text. Both are read
shard by shard and in order. Shuffling is the pipeline's, so that a position in the data is a few integers.
"""

import contextlib
import functools
import importlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from moe.config import ConfigError, first_line, require
from moe.data.documents import Documents, Ragged, check_ids, stable_hash
from moe.data.errors import DataError
from moe.data.quiet_import import quiet_import
from moe.data.source import Source, TextSource, require_split
from moe.data.sources.task import TaskConfig
from moe.data.tasks.glue import GlueTask
from moe.data.tasks.registration import RegisteredTask, register
from moe.data.vocabulary import EOS, Vocabulary

with quiet_import():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

BLOCK_EXAMPLES = 2048
_PROBE = "The quick brown fox, 42 naïve cafés."


def open_task(config: TaskConfig, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> Source:
  """The registered task or mixture of that name; otherwise the TFDS dataset of that name.

  Args:
    config: what to read.
    split: "train", "validation", or the task's own name of a split.
    vocabulary: the task's, or what tokenizes a dataset's text.
    lengths: tokens per row of "inputs" and "targets", for the task's preprocessors.
    seed: of the task's preprocessors.

  Raises:
    ConfigError: no such module, task, dataset or text feature; or a task has another vocabulary, or is not prepared.
    DataError: no such split, or the data cannot be read.
  """
  provider = _find(config, vocabulary)
  if provider is None:
    return TfdsTextSource(config, config.split(split), vocabulary)
  if isinstance(provider, seqio.Task):
    return TaskSource(provider, config.split(split), vocabulary, lengths, seed)
  raise ConfigError("task", config.task, "expected a task, not a mixture of tasks")


def open_readers(
  config: TaskConfig, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> list[tuple[seqio.Task, GlueTask | None, Callable[[str], Iterator[tuple[str, dict[str, Any]]]]]]:
  """A registered task, or every task of a mixture: the task, what it is if it is ours, and a reader of its splits.

  A reader gives each preprocessed example with what to call it in an error.

  Raises:
    ConfigError: as `open_task`, and where the name is that of a TFDS dataset.
  """
  provider = _find(config, vocabulary)
  expected = "expected a registered seqio task or mixture, not a TFDS dataset of text"
  require(provider is not None, "task", config.task, expected)
  tasks = [provider] if isinstance(provider, seqio.Task) else _tasks_of(provider)
  for task in tasks:
    _check_task(task, vocabulary)

  def reader(task: seqio.Task, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return TaskReader(task, config.split(split), lengths, seed=0).all_examples()

  return [(task, _glue(task), functools.partial(reader, task)) for task in tasks]


def _find(config: TaskConfig, vocabulary: Vocabulary) -> seqio.Task | seqio.Mixture | None:
  """The registered task or mixture of that name, after importing `config.modules`; None if there is none."""
  # TensorFlow would otherwise reserve the accelerator's memory.
  tf.config.set_visible_devices([], "GPU")
  register(vocabulary, config.data_dir)
  for module in config.modules:
    try:
      importlib.import_module(module)
    except Exception as error:  # a module is a program: anything can go wrong in it
      wanted = f"expected a module that can be imported ({type(error).__name__}: {first_line(error)})"
      raise ConfigError("modules", module, wanted) from None
  known = [folder for folder in config.cache_dirs if folder not in seqio.get_global_cache_dirs()]
  seqio.add_global_cache_dirs(known)
  if config.task in seqio.TaskRegistry.names():
    return seqio.TaskRegistry.get(config.task)
  if config.task in seqio.MixtureRegistry.names():
    return seqio.MixtureRegistry.get(config.task)
  return None


def _tasks_of(mixture: seqio.Mixture) -> list[seqio.Task]:
  """The tasks of a mixture, sorted by name: of GLUE and SuperGLUE those for the vocabulary in use."""
  return [seqio.TaskRegistry.get(task.name) if isinstance(task, RegisteredTask) else task for task in mixture.tasks]


def _glue(task: seqio.Task) -> GlueTask | None:
  return task.glue if isinstance(task, RegisteredTask) else None


def _check_task(task: seqio.Task, vocabulary: Vocabulary) -> None:
  """Raises `ConfigError` unless the task can be read: it has `targets`, this vocabulary, its data or its cache."""
  require("targets" in task.output_features, "task", task.name, "expected a task with the feature 'targets'")
  for name in _features(task):
    _check_vocabulary(task.output_features[name].vocabulary, task.name, vocabulary)
  if isinstance(task, RegisteredTask):
    task.require_prepared()
  if task.requires_caching and not task.cache_dir:
    expected = f"expected the folder with seqio's cache of task {task.name}, which cannot be read without"
    raise ConfigError("cache_dirs", tuple(seqio.get_global_cache_dirs()), expected)


def _features(task: seqio.Task) -> tuple[str, ...]:
  return ("inputs", "targets") if "inputs" in task.output_features else ("targets",)


class TaskReader:
  """The examples of one split of a seqio task, after its preprocessors, in shards and in order.

  Attributes:
    num_shards: at least 1.

  Raises:
    DataError: the task does not have the split, or it cannot be read.
  """

  def __init__(self, task: seqio.Task, split: str, lengths: Mapping[str, int], seed: int):
    self._task, self.split, self._lengths, self._seed = task, split, lengths, seed
    whole = _whole(split)
    with _one_line(task.name):
      self._cached = task.supports_caching and bool(task.cache_dir)
      require_split(whole, _cached_splits(task.cache_dir) if self._cached else task.splits, task.name)
      self._source = task._get_cached_source(whole) if self._cached else task.source
      cuts_itself = isinstance(self._source, seqio.TfdsDataSource)
      self._source_split = split if cuts_itself else whole
      self.num_shards = len(self._source.list_shards(self._source_split))
      self._parts = None if self._source_split == split else self._cut()

  def where(self, shard: int) -> str:
    """What to call a shard in an error."""
    return f"{self._task.name}, split {self.split}, shard {shard}"

  def examples(self, shard: int, epoch: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Blocks of at most BLOCK_EXAMPLES examples, from example `start` of the shard on."""
    with _one_line(self.where(shard)):
      examples = self._dataset(shard, epoch).skip(start).as_numpy_iterator()
    while block := _take(examples, BLOCK_EXAMPLES, self.where(shard)):
      yield block

  def all_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every example of the split, with what to call it in an error."""
    for shard in range(self.num_shards):
      numbers = itertools.count()
      for block in self.examples(shard, epoch=0):
        for example in block:
          yield f"{self.where(shard)}, example {next(numbers)}", example

  def count(self) -> int:
    """How many examples there are after the preprocessors; reads them."""
    with _one_line(self.where(0)):
      return sum(_length(self._dataset(shard, epoch=0)) for shard in range(self.num_shards))

  def _dataset(self, shard: int, epoch: int) -> tf.data.Dataset:
    """The shard after the task's preprocessors, whose randomness depends only on seed, epoch and shard."""
    seed = stable_hash(self._seed, epoch, shard) % 2**31
    dataset = self._raw(shard)
    if self._parts is not None:
      start, stop = self._parts[shard]
      dataset = dataset.skip(start).take(stop - start)
    if not self._cached:
      dataset = self._task.preprocess_precache(dataset, seed=seed)
    dataset = self._task.preprocess_postcache(dataset, sequence_length=self._lengths, seed=seed)
    return dataset.with_options(_in_order())

  def _raw(self, shard: int) -> tf.data.Dataset:
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    # No seed, since the source is read in order, and some sources do not accept one.
    return self._source.get_dataset(split=self._source_split, shuffle=False, seed=None, shard_info=info)

  def _cut(self) -> list[tuple[int, int]]:
    """Of every shard, the first example of the part of the split and the one after its last."""
    ends = np.cumsum([0, *(_length(self._raw(shard)) for shard in range(self.num_shards))])
    start, stop = _bounds(self.split, int(ends[-1]))
    return [(int(a), int(b)) for a, b in zip(np.clip(start - ends[:-1], 0, None), np.clip(stop - ends[:-1], 0, None))]


def _length(dataset: tf.data.Dataset) -> int:
  """The number of elements, by reading them if need be."""
  known = int(dataset.cardinality())
  if known == tf.data.INFINITE_CARDINALITY:
    raise ValueError("expected a finite number of examples")
  return known if known >= 0 else int(dataset.reduce(np.int64(0), lambda number, _: number + 1))


def _bounds(split: str, number: int) -> tuple[int, int]:
  """The first of `number` examples that the part of a split has, and the one after its last: "train[10%:-100]"."""
  match = re.fullmatch(r"[^\[]+\[(-?\d+%?)?:(-?\d+%?)?\]", split)
  if match is None:
    raise DataError(f"split {split!r}", "expected a split, or a part of one such as 'train[:90%]' or 'train[100:]'")

  def position(bound: str | None, default: int) -> int:
    if bound is None:
      return default
    at = round(int(bound[:-1]) * number / 100) if bound.endswith("%") else int(bound)
    return min(max(at + number if at < 0 else at, 0), number)

  start, stop = position(match[1], 0), position(match[2], number)
  return start, max(start, stop)


def _cached_splits(folder: str) -> list[str]:
  """The splits in a task's cache."""
  names = (os.path.basename(path) for path in tf.io.gfile.glob(os.path.join(folder, "info.*.json")))
  return sorted(name.removeprefix("info.").removesuffix(".json") for name in names)


class TaskSource:
  """A registered seqio task with the feature `targets`, and perhaps `inputs`.

  Raises:
    ConfigError: the task does not have `targets`, has another vocabulary, or is not prepared. DataError: it does not
      have the split, or cannot be read; while reading, also an id beyond the vocabulary, or an example of our own tasks
      that is empty or has no label.
  """

  varies = True
  skipped = 0

  def __init__(self, task: seqio.Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int):
    _check_task(task, vocabulary)
    self.reader = TaskReader(task, split, lengths, seed)
    self._task, self._glue = task, _glue(task)
    self._vocabulary_size = vocabulary.size
    self.supervised = "inputs" in task.output_features
    self._names = _features(task)
    self.num_shards = self.reader.num_shards
    self.fingerprint = f"{stable_hash(task.name, split, self.num_shards):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    first = start * BLOCK_EXAMPLES
    for block in self.reader.examples(shard, epoch, first):
      learned = self._learned(block, shard, first)
      yield Documents(**{name: self._ids(learned, name, shard) for name in self._names})
      first += len(block)

  def _learned(self, block: list[dict[str, Any]], shard: int, first: int) -> list[tuple[int, dict[str, Any]]]:
    """The numbered examples that the loss is taken of."""
    numbered = list(enumerate(block, first))
    if self._glue is None:
      return numbered
    where = self.reader.where(shard)
    return [(n, example) for n, example in numbered if self._glue.is_learned(example, f"{where}, example {n}")]

  def _ids(self, examples: list[tuple[int, dict[str, Any]]], name: str, shard: int) -> Ragged:
    """A feature of some examples, int32; without an EOS that the task appended, since the objective appends its own."""
    where = self.reader.where(shard)
    found = [np.asarray(example[name]) for _, example in examples if name in example]
    is_ids = len(found) == len(examples) and all(f.ndim == 1 and np.issubdtype(f.dtype, np.integer) for f in found[:1])
    if not is_ids:
      raise DataError(where, f"has no feature {name!r} of token ids after the task's preprocessors")
    ids = Ragged.join([array[:-1] if len(array) and array[-1] == EOS else array for array in found])
    check_ids(ids, self._vocabulary_size, lambda i: f"{where}, example {examples[i][0]}")
    return Ragged(ids.flat.astype(np.int32), ids.offsets)

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._task.name, "is a seqio task, which gives token ids and no text")


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
