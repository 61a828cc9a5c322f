"""Reading seqio tasks and TFDS datasets. Imports TensorFlow: import it where it is needed.

A registered task gives token ids by its own preprocessors; of a TFDS dataset, one feature is plain text. Both are read
shard by shard and in order. Shuffling is the pipeline's, so that a position in the data is a few integers.
"""

import contextlib
import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from moe.config import ConfigError, first_line, require
from moe.data.documents import Documents, Ragged, check_ids, stable_hash
from moe.data.errors import DataError
from moe.data.formats.prepared import how_to_prepare
from moe.data.quiet_import import quiet_import
from moe.data.source import TextSource, require_split
from moe.data.sources.task import TaskConfig
from moe.data.tasks.glue import GlueTask
from moe.data.tasks.registration import RegisteredTask
from moe.data.vocabulary import EOS, Vocabulary

with quiet_import():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

BLOCK_EXAMPLES = 2048
_AT_ONCE = 256
_PROBE = "The quick brown fox, 42 naïve cafés."


def glue_of(task: seqio.Task) -> GlueTask | None:
  return task.glue if isinstance(task, RegisteredTask) else None


def check_task(task: seqio.Task, vocabulary: Vocabulary) -> None:
  """Raises `ConfigError` unless the task can be read: it has `targets`, this vocabulary, its data or its cache."""
  require("targets" in task.output_features, "task", task.name, "expected a task with the feature 'targets'")
  for name in _features(task):
    _check_vocabulary(task.output_features[name].vocabulary, task.name, vocabulary)
  if isinstance(task, RegisteredTask):
    task.require_prepared()
  if task.requires_caching and not task.cache_dir:
    expected = f"expected the folder with seqio's cache of task {task.name}, which cannot be read without it"
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
    split_name = whole_split(split)
    with one_line(task.name):
      self._cached = task.supports_caching and bool(task.cache_dir)
      require_split(split_name, _cached_splits(task.cache_dir) if self._cached else task.splits, task.name)
      self._source = task._get_cached_source(split_name) if self._cached else task.source
      cuts_itself = isinstance(self._source, seqio.TfdsDataSource)
      self._source_split = split if cuts_itself else split_name
      if cuts_itself and math.isinf(self._source.num_input_examples(split)):  # as seqio counts an empty part
        raise _empty(split, task.name)
      self.num_shards = len(self._source.list_shards(self._source_split))
      self._parts = None if self._source_split == split else self._cut()

  @functools.cached_property
  def known_size(self) -> int | None:
    """How many examples the source has, before any preprocessor; None if it does not know."""
    with contextlib.suppress(Exception):  # of a user's own source
      return self._source.num_input_examples(self._source_split)
    return None

  def where(self, shard: int) -> str:
    """What to call a shard in an error."""
    return f"{self._task.name}, split {self.split}, shard {shard}"

  def examples(self, shard: int, epoch: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Blocks of at most BLOCK_EXAMPLES examples, from example `start` of the shard on."""
    with one_line(self.where(shard)):
      examples = _rows(self._dataset(shard, epoch).skip(start))
    while block := _take(examples, BLOCK_EXAMPLES, self.where(shard)):
      yield block

  def all_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every example of the split, with what to call it in an error."""
    for shard in range(self.num_shards):
      numbers = itertools.count()
      for block in self.examples(shard, epoch=0):
        for example in block:
          yield f"{self.where(shard)}, example {next(numbers)}", example

  @functools.cached_property
  def rows(self) -> int:
    """How many examples there are before the preprocessors."""
    if self._parts is not None:
      return sum(stop - start for start, stop in self._parts)
    if self.known_size is not None:
      return self.known_size
    with one_line(self._task.name):
      return sum(_length(self._raw(shard)) for shard in range(self.num_shards))

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
    start, stop = part_bounds(self.split, int(ends[-1]))
    return [(int(a), int(b)) for a, b in zip(np.clip(start - ends[:-1], 0, None), np.clip(stop - ends[:-1], 0, None))]


def _rows(dataset: tf.data.Dataset) -> Iterator[dict[str, Any]]:
  """The elements of a dataset as NumPy arrays; taken out of it many at a time, since each time costs."""
  for batch in dataset.ragged_batch(_AT_ONCE).prefetch(2):
    yield from _column(batch)


def _column(batch: Any) -> Iterable[Any]:
  """The parts of a batch, one per element."""
  if isinstance(batch, Mapping):
    return (dict(zip(batch, row)) for row in zip(*map(_column, batch.values())))
  if not isinstance(batch, tf.RaggedTensor):
    return batch.numpy()
  if batch.ragged_rank > 1:
    return (row.numpy() for row in batch)
  values, splits = batch.values.numpy(), batch.row_splits.numpy()
  return (values[first:last] for first, last in itertools.pairwise(splits))


def _length(dataset: tf.data.Dataset) -> int:
  """The number of elements, by reading them if need be."""
  known = int(dataset.cardinality())
  if known == tf.data.INFINITE_CARDINALITY:
    raise ValueError("expected a finite number of examples")
  return known if known >= 0 else int(dataset.reduce(np.int64(0), lambda number, _: number + 1))


def part_bounds(split: str, number: int) -> tuple[int, int]:
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
    check_task(task, vocabulary)
    self.name, self.reader = task.name, TaskReader(task, split, lengths, seed)
    self._glue = glue_of(task)
    self._vocabulary_size = vocabulary.size
    self.supervised = "inputs" in task.output_features
    self._names = _features(task)
    self.num_shards = self.reader.num_shards
    self.fingerprint = f"{stable_hash(task.name, split, self.num_shards, self.reader.known_size):016x}"

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
    raise DataError(self.name, "is a seqio task, which gives token ids and no text")


class TfdsTextSource(TextSource):
  """A text feature of a prepared TFDS dataset.

  Raises:
    ConfigError: the dataset or the feature does not exist, or is not prepared in `data_dir`. DataError: the split does
      not exist, or cannot be read.
  """

  def __init__(self, config: TaskConfig, split: str, vocabulary: Vocabulary, hint: str):
    super().__init__(vocabulary)
    where = config.data_dir or "the default TFDS directory"
    data_dir = os.path.expanduser(config.data_dir) or None
    try:
      builder = tfds.builder(config.task, data_dir=data_dir)
    except Exception as error:  # TFDS raises a dozen kinds
      expected = f"expected a registered seqio task, or a TFDS dataset in {where}{hint} ({first_line(error)})"
      raise ConfigError("task", config.task, expected) from None
    wanted = f"expected a dataset prepared in {where}; {how_to_prepare(config.task, config.data_dir)}"
    require(bool(builder.info.splits), "task", config.task, wanted)
    require_split(whole_split(split), builder.info.splits, config.task)
    features = builder.info.features
    key = config.text_key
    require(key in features, "text_key", key, f"expected a feature of {config.task}: {', '.join(features)}")
    is_text = features[key].dtype in (str, tf.string, np.dtype(object))
    require(is_text, "text_key", key, f"expected a text feature of {config.task}")
    name = ":".join(builder.info.full_name.rsplit("/", 1))
    self._key, self._split, self._name = key, split, config.task
    with one_line(config.task):
      if not builder.info.splits[split].num_examples:
        raise _empty(split, config.task)
      self._source = seqio.TfdsDataSource(name, tfds_data_dir=data_dir, read_only=True)
      self.num_shards = len(self._source.list_shards(split))
    self.fingerprint = f"{stable_hash(name, split, builder.info.splits[split].num_examples):016x}"

  def texts(self, shard: int) -> Iterator[str]:
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    where = f"{self._name}, split {self._split}, shard {shard}"
    with one_line(where):
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


def _empty(split: str, name: str) -> DataError:
  """Raised before seqio looks for the files of a part of a split, since it ends the process if there is none."""
  return DataError(f"split {split!r}", f"holds no example of {name}")


def _take(examples: Iterator[Any], number: int, where: str) -> list[Any]:
  """The next examples, at most `number`; none after the last."""
  with one_line(where):  # not around a `yield`: a generator may end with the process, when no names are left
    return list(itertools.islice(examples, number))


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
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


def whole_split(split: str) -> str:
  """The split that a part of one, such as "train[:90%]", belongs to."""
  return split.partition("[")[0]


def _check_vocabulary(of_task: seqio.Vocabulary, name: str, ours: Vocabulary) -> None:
  expected = f"expected the vocabulary of task {name}, which has {of_task.vocab_size} ids"
  require(of_task.vocab_size <= ours.size, "config.data.vocabulary", ours.name, expected)
  if isinstance(of_task, (seqio.SentencePieceVocabulary, seqio.ByteVocabulary)):
    same = list(of_task.encode(_PROBE)) == ours.encode(_PROBE).tolist()
    require(same, "config.data.vocabulary", ours.name, f"expected the ids of the vocabulary of task {name}")
