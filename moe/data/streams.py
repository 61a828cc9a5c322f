"""Endless or one-pass streams of rows, and where they stand.

A stream's place is four integers: epoch, number in the epoch's order of shards, block, row. Everything between that
place and the bytes of the source is derived again, so a restored stream goes on as if it had never stopped.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor, Future

import numpy as np

from moe.data.documents import Documents, Source
from moe.data.errors import DataError
from moe.data.objectives import Examples, Objective
from moe.data.rows import Row, RowShape

# What a random draw is for: keys of different purposes never meet.
_SHARDS, _ROWS, _EXAMPLES = range(3)


class BlockReader:
  """Reads blocks by number; going on within a shard costs one block, going elsewhere starts the shard again."""

  def __init__(self, source: Source, kept: int):
    self.source = source
    self._kept = kept
    self._blocks: OrderedDict[tuple[int, int, int], Documents | None] = OrderedDict()
    self._open: OrderedDict[tuple[int, int], tuple[int, Iterator[Documents]]] = OrderedDict()

  def get(self, shard: int, block: int, epoch: int) -> Documents | None:
    """The block, or None past the shard's last."""
    version = epoch if self.source.varies else 0
    key = (shard, block, version)
    if key not in self._blocks:
      self._blocks[key] = self._read(shard, block, version)
    self._blocks.move_to_end(key)
    while len(self._blocks) > self._kept:
      self._blocks.popitem(last=False)
    return self._blocks[key]

  def _read(self, shard: int, block: int, version: int) -> Documents | None:
    at, blocks = self._open.pop((shard, version), (-1, iter(())))
    if at != block:
      blocks = self.source.blocks(shard, block, version)
    documents = next(blocks, None)
    if documents is not None:
      self._open[shard, version] = (block + 1, blocks)
    while len(self._open) > self._kept:
      self._open.popitem(last=False)
    return documents


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a stream stands: `row` rows of the block were given."""

  epoch: int = 0
  order: int = 0
  block: int = 0
  row: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
  """A block's rows in the order in which they are given."""

  place: Place
  examples: Examples
  rows: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamRules:
  """What all streams of a pipeline share. `number` streams; `endless` and `shuffled` while training."""

  objective: Objective
  shape: RowShape
  number: int
  seed: int
  pack: bool
  endless: bool
  shuffled: bool


class RowStream:
  """Stream `index` of `rules.number`: a share of the shards, or of every block where there are fewer shards."""

  def __init__(self, rules: StreamRules, reader: BlockReader, index: int, executor: Executor, place: Place):
    self._rules, self._reader, self._index, self._executor = rules, reader, index, executor
    self._by_shard = reader.source.num_shards >= rules.number
    self.place = place
    self._plan: Plan | None = None
    self._next: Future[Plan | None] = executor.submit(self._find, place)

  def take(self) -> Row | None:
    """The next row, or None at the end of a single pass."""
    while self._plan is None or self.place.row >= len(self._plan.rows):
      plan = self._next.result()
      if plan is None:
        return None
      resumed = plan.place == dataclasses.replace(self.place, row=0)
      self._plan, self.place = plan, self.place if resumed else plan.place
      # The block after this one is read while this one's rows are used.
      self._next = self._executor.submit(self._find, dataclasses.replace(plan.place, block=plan.place.block + 1))
    row = self._plan.rows[self.place.row]
    self.place = dataclasses.replace(self.place, row=self.place.row + 1)
    return [self._plan.examples[i] for i in row]

  def _find(self, place: Place) -> Plan | None:
    """The first block from `place` on that has rows."""
    epoch, order, block = place.epoch, place.order, place.block
    last = epoch + 1
    while True:
      shards = self._shards(epoch)
      if order >= len(shards):
        if not self._rules.endless:
          return None
        if epoch >= last:
          raise DataError("data", f"no example for stream {self._index} of {self._rules.number} in a whole epoch")
        epoch, order, block = epoch + 1, 0, 0
        continue
      documents = self._reader.get(shards[order], block, epoch)
      if documents is None:
        order, block = order + 1, 0
        continue
      plan = self._make_plan(documents, shards[order], Place(epoch, order, block))
      if plan.rows:
        return plan
      block += 1

  def _shards(self, epoch: int) -> np.ndarray:
    shards = np.arange(self._reader.source.num_shards)
    if self._rules.shuffled:
      shards = np.random.default_rng((self._rules.seed, _SHARDS, epoch)).permutation(shards)
    return shards[self._index :: self._rules.number] if self._by_shard else shards

  def _make_plan(self, documents: Documents, shard: int, place: Place) -> Plan:
    rules, at = self._rules, (place.epoch, int(shard), place.block)
    examples = rules.objective(documents, (rules.seed, _EXAMPLES, *at))
    chosen = np.arange(len(examples.lengths))
    if not self._by_shard:
      chosen = chosen[self._index :: rules.number]
    rows = rules.shape.pack(examples, chosen, rules.pack)
    if rules.shuffled:
      order = np.random.default_rng((rules.seed, _ROWS, *at, self._index)).permutation(len(rows))
      rows = [rows[i] for i in order]
    return Plan(place, examples, rows)
