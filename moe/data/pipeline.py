"""Batches of a config's data, made ahead in a thread, from a place that a checkpoint can hold."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moe.data.data_config import Architecture, DataConfig
from moe.data.errors import DataError
from moe.data.objectives import make_objective
from moe.data.prefetch import Prefetcher
from moe.data.rows import Batch, RowShape
from moe.data.sources import make_source, make_vocabulary
from moe.data.streams import BlockReader, Place, RowStream, StreamRules


class Pipeline:
  """An iterator of numpy batches.

  shape: the batch's format; `shape.empty(rows)` is a batch of padding.
  Use as a context manager, or `close()`, so that its threads end.
  """

  def __init__(self, rules: StreamRules, reader: BlockReader, rows: np.ndarray, rows_each: int, depth: int):
    self.shape = rules.shape
    self._rules, self._reader, self._rows_each, self._depth = rules, reader, rows_each, depth
    self._streams = np.unique(rows // rows_each).tolist()
    # Where the wanted rows stand among those of the streams read.
    read = np.concatenate([np.arange(rows_each) + index * rows_each for index in self._streams])
    self._wanted = np.searchsorted(read, rows)
    self._places = {index: Place() for index in self._streams}
    self._executor: ThreadPoolExecutor | None = None
    self._batches: Prefetcher | None = None

  def __iter__(self) -> "Pipeline":
    return self

  def __next__(self) -> Batch:
    if self._batches is None:
      self._executor = ThreadPoolExecutor(1, "moe-data-block")
      self._batches = Prefetcher(self._make_batches(dict(self._places)), self._depth)
    batch, self._places = next(self._batches)
    return batch

  def __enter__(self) -> "Pipeline":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  @property
  def position(self) -> dict:
    """Where the next batch begins: JSON, one entry for each stream of this host.

    The positions of several hosts are one by joining their "streams"; any number of hosts can restore that.
    """
    streams = {str(index): [p.epoch, p.order, p.block, p.row] for index, p in self._places.items()}
    return {"source": self._reader.source.fingerprint, "streams": streams}

  def restore(self, position: dict) -> None:
    """Goes on from `position`.

    Raises:
      DataError: the position is of other data, or lacks a stream of this host.
    """
    if position["source"] != self._reader.source.fingerprint:
      raise DataError("data", "has changed since the checkpoint was written, so its place in it means nothing now")
    missing = [index for index in self._streams if str(index) not in position["streams"]]
    if missing:
      raise DataError("data", f"the checkpoint has no place for stream {missing[0]} of {self._rules.number}")
    self.close()
    self._places = {index: Place(*position["streams"][str(index)]) for index in self._streams}

  def padding(self) -> Batch:
    """A batch that holds nothing."""
    return self.shape.empty(len(self._wanted))

  def close(self) -> None:
    """Ends the threads; the position stays, and iterating again goes on from it."""
    if self._batches is not None:
      # In this order: the batch thread may be waiting for a block.
      self._batches.close()
      self._executor.shutdown(cancel_futures=True)
      self._batches = self._executor = None

  def _make_batches(self, places: dict[int, Place]) -> Iterator[tuple[Batch, dict[int, Place]]]:
    streams = [RowStream(self._rules, self._reader, i, self._executor, place) for i, place in places.items()]
    while True:
      batch = self.shape.empty(self._rows_each * len(streams))
      taken = 0
      for number, stream in enumerate(streams):
        for i in range(self._rows_each):
          row = stream.take()
          if row is None:
            break
          self.shape.fill(batch, number * self._rows_each + i, row)
          taken += 1
      if not taken:
        return
      batch = {name: array[self._wanted] for name, array in batch.items()}
      yield batch, {index: stream.place for index, stream in zip(places, streams)}


def make_pipeline(
  config: DataConfig,
  architecture: Architecture,
  split: str,
  *,
  training: bool,
  rows: np.ndarray | None = None,
) -> Pipeline:
  """The pipeline of one split.

  split: "train", "validation", or for a task any other of its splits.
  training: endless, and shuffled if the config says so; else one pass in a fixed order, whose last batches have empty
    rows where a stream has ended. On several hosts a pass may then end sooner on one: it goes on with
    `Pipeline.padding` until all have ended.
  rows: numbers of the batch's rows that this host wants, ascending; all of them by default. Every row is the same
    whoever reads it; only the streams that the wanted ones come from are read.

  Raises:
    ConfigError, DataError: whatever is wrong with the config or the data, as far as it shows before reading all.
  """
  vocabulary = make_vocabulary(config)
  source = make_source(config, split, vocabulary)
  rules = StreamRules(
    objective=make_objective(config, architecture, vocabulary, source.supervised),
    shape=RowShape.of(config, architecture),
    number=config.streams,
    seed=config.seed,
    pack=config.pack,
    endless=training,
    shuffled=training and config.shuffle,
  )
  rows = np.arange(config.batch_size) if rows is None else rows
  rows_each = config.batch_size // config.streams
  # One block in use and one read ahead, for every stream that reads its own.
  kept = 3 + (2 * len(np.unique(rows // rows_each)) if source.num_shards >= config.streams else 0)
  return Pipeline(rules, BlockReader(source, kept), rows, rows_each, config.prefetch)
