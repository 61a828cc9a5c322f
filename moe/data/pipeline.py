"""Batches of a config's data, prepared ahead in a thread, with a position that a checkpoint can store."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moe.config import in_section, require
from moe.data.batch import Batch, RowFormat
from moe.data.corpus import make_source, make_vocabulary
from moe.data.data_config import DataConfig
from moe.data.errors import DataError
from moe.data.objective import ObjectiveConfig
from moe.data.prefetch import Prefetcher
from moe.data.streams import BlockReader, RowMaker, RowStream, StreamPosition, StreamRules, has_own_shards


class Pipeline:
  """An iterator of numpy batches. Use it as a context manager, or `close()` it, so that its threads end.

  Attributes:
    shape: of the batches.
  """

  def __init__(self, rules: StreamRules, reader: BlockReader, rows: np.ndarray, rows_each: int, depth: int):
    self.shape = rules.shape
    self._rules, self._reader, self._rows_each, self._depth = rules, reader, rows_each, depth
    self._streams = np.unique(rows // rows_each).tolist()
    # Which rows of the streams that are read are the wanted ones.
    read = np.concatenate([np.arange(rows_each) + index * rows_each for index in self._streams])
    self._wanted = np.searchsorted(read, rows)
    self._positions = {index: StreamPosition() for index in self._streams}
    self._executor: ThreadPoolExecutor | None = None
    self._batches: Prefetcher | None = None

  def __iter__(self) -> "Pipeline":
    return self

  def __next__(self) -> Batch:
    if self._batches is None:
      self._executor = ThreadPoolExecutor(1, "moe-data-block")
      self._batches = Prefetcher(self._make_batches(dict(self._positions)), self._depth)
    batch, self._positions = next(self._batches)
    return batch

  def __enter__(self) -> "Pipeline":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  @property
  def position(self) -> dict:
    """Where the next batch begins: JSON with one entry for each stream that this host reads.

    To combine the positions of several hosts, merge their "streams". Any number of hosts can restore the result.
    """
    streams = {str(index): list(dataclasses.astuple(p)) for index, p in self._positions.items()}
    return {"source": self._reader.source.fingerprint, "streams": streams}

  @property
  def skipped(self) -> int:
    """Bad records passed over so far, by this host."""
    return self._reader.source.skipped

  def restore(self, position: dict) -> None:
    """Resumes from `position`.

    Raises:
      DataError: the position is of other data, or lacks a stream that this host reads.
    """
    if position["source"] != self._reader.source.fingerprint:
      raise DataError("data", "has changed since the checkpoint was written, so the position in it is no longer valid")
    missing = [index for index in self._streams if str(index) not in position["streams"]]
    if missing:
      raise DataError("data", f"the checkpoint has no position for stream {missing[0]} of {self._rules.number}")
    places = {index: position["streams"][str(index)] for index in self._streams}
    shared = not has_own_shards(self._reader.source, self._rules.number)
    if shared and any(len(place) == 4 for place in places.values()):
      raise DataError("data", "the checkpoint is of an older version, whose streams shared their shards in another way")
    self.close()
    self._positions = {index: StreamPosition(*place) for index, place in places.items()}

  def padding(self) -> Batch:
    """A batch of padding."""
    return self.shape.empty(len(self._wanted))

  def close(self) -> None:
    """Ends the threads. The position is kept: iterating again resumes from it."""
    if self._batches is not None:
      # In this order: the batch thread may be waiting for a block.
      self._batches.close()
      self._executor.shutdown(cancel_futures=True)
      self._batches = self._executor = None

  def _make_batches(self, positions: dict[int, StreamPosition]) -> Iterator[tuple[Batch, dict[int, StreamPosition]]]:
    """Each batch with the positions of its streams after it."""
    maker = RowMaker(self._rules, self._reader)
    streams = {i: RowStream(self._rules, maker, i, self._executor, start) for i, start in positions.items()}
    while True:
      batch = self.shape.empty(self._rows_each * len(streams))
      taken = {}
      for number, stream in enumerate(streams.values()):
        for i in range(self._rows_each):
          row = stream.take()
          if row is None:
            break
          taken[number * self._rows_each + i] = row
      if not taken:
        return
      self.shape.fill_all(batch, taken)
      batch = {name: array[self._wanted] for name, array in batch.items()}
      yield batch, {index: stream.position for index, stream in streams.items()}


def make_pipeline(
  config: DataConfig, row_format: RowFormat, split: str, *, training: bool, rows: np.ndarray | None = None
) -> Pipeline:
  """The pipeline of one split.

  Args:
    config: of the data.
    row_format: what the model reads, inputs and targets or one sequence.
    split: "train" or "validation"; a task has any other of its splits as well.
    training: endless, and shuffled if the config says so. Otherwise one pass in a fixed order, the same for every seed,
      of packed rows in no order of length, so that the first batches are like the rest. Its last batches have empty
      rows for streams that have ended; one of several hosts may end before the others, and continues with
      `Pipeline.padding` until all have ended.
    rows: numbers of the rows of the batch that this host wants, ascending; by default all. A row is the same on every
      host, and only the streams that the wanted rows come from are read.

  Raises:
    ConfigError, DataError: what is wrong with the config or the data, as far as it shows before all is read.
  """
  vocabulary = make_vocabulary(config)
  source = make_source(config, split, vocabulary)
  shape = config.row_shape(row_format)
  with in_section("config.data"):
    config.objective.check_format(row_format)
    _check_objective(config.objective, source.supervised)
    make = config.objective.make if training else config.objective.make_plain
    objective = make(shape, vocabulary)
    config.objective.check_source(source, shape)
  rules = StreamRules(
    objective=objective,
    shape=shape,
    number=config.streams,
    seed=config.seed,
    pack=config.pack,
    endless=training,
    shuffled=training and config.shuffle,
  )
  rows = np.arange(config.batch_size) if rows is None else rows
  rows_each = config.batch_size // config.streams
  # One block in use and one read ahead, for every stream that reads shards of its own.
  kept = 3 + (2 * len(np.unique(rows // rows_each)) if has_own_shards(source, config.streams) else 0)
  return Pipeline(rules, BlockReader(source, kept), rows, rows_each, config.prefetch)


def _check_objective(objective: ObjectiveConfig, supervised: bool) -> None:
  """Raises `ConfigError` unless the objective reads what the source gives: pairs, or plain text."""
  given = "pairs of inputs and targets" if supervised else "plain text"
  alike = (one for one in objective.choices.values() if one.reads_pictures == objective.reads_pictures)
  fitting = sorted(one.name for one in alike if one.reads_pairs == supervised)
  expected = f"expected one of {', '.join(fitting)}, since the source gives {given}"
  require(objective.reads_pairs == supervised, "objective", objective.name, expected)
