"""Streams of rows, endless or a single pass, and their positions.

The position of a stream is four integers: epoch, index in the epoch's order of shards, block, row. Everything else is
derived from the position and the source, so a restored stream gives the rows that it would have given.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Executor, Future

import numpy as np

from moe.data.batch import Example, Examples, RowShape
from moe.data.documents import Documents
from moe.data.errors import DataError
from moe.data.objective import Objective
from moe.data.source import Source

# What a random draw is for: keys of different purposes never collide.
_SHARDS, _ROWS, _EXAMPLES = range(3)


class BlockReader:
  """Reads blocks by number. The next block of a shard costs one block; any other restarts the shard."""

  def __init__(self, source: Source, kept: int):
    self.source = source
    self._kept = kept
    self._blocks: OrderedDict[tuple[int, int, int], Documents | None] = OrderedDict()
    self._open: OrderedDict[tuple[int, int], tuple[int, Iterator[Documents]]] = OrderedDict()

  def get(self, shard: int, block: int, epoch: int) -> Documents | None:
    """The block, or None after the shard's last."""
    version = epoch if self.source.varies else 0
    key = (shard, block, version)
    if key not in self._blocks:
      self._blocks[key] = self._read(shard, block, version)
    self._blocks.move_to_end(key)
    while len(self._blocks) > self._kept:
      self._blocks.popitem(last=False)
    return self._blocks[key]

  def _read(self, shard: int, block: int, version: int) -> Documents | None:
    next_block, blocks = self._open.pop((shard, version), (-1, iter(())))
    if next_block != block:
      blocks = self.source.blocks(shard, block, version)
    documents = next(blocks, None)
    if documents is not None:
      self._open[shard, version] = (block + 1, blocks)
    while len(self._open) > self._kept:
      self._open.popitem(last=False)
    return documents


@dataclasses.dataclass(frozen=True)
class StreamPosition:
  """Where the next row of a stream comes from: `row` rows of the block are already taken."""

  epoch: int = 0
  order: int = 0
  block: int = 0
  row: int = 0


@dataclasses.dataclass(frozen=True)
class BlockRows:
  """The rows of one block, as numbers of its examples, in the order in which a stream gives them.

  Attributes:
    position: of the first row.
    examples: of the block.
    rows: the numbers of the examples in each row.
  """

  position: StreamPosition
  examples: Examples
  rows: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamRules:
  """What all streams of a pipeline have in common.

  Attributes:
    objective: makes examples of documents.
    shape: of rows.
    number: how many streams there are.
    seed: of everything random.
    pack: several examples per row.
    endless: start another epoch at the end of the data.
    shuffled: shards, and rows within a block; else packed rows have a fixed permutation within a block.
  """

  objective: Objective
  shape: RowShape
  number: int
  seed: int
  pack: bool
  endless: bool
  shuffled: bool


class RowStream:
  """Stream `index` of `rules.number`: a share of the shards, or of every block if there are fewer shards."""

  def __init__(self, rules: StreamRules, reader: BlockReader, index: int, executor: Executor, position: StreamPosition):
    self._rules, self._reader, self._index, self._executor = rules, reader, index, executor
    self._by_shard = reader.source.num_shards >= rules.number
    self.position = position
    self._current: BlockRows | None = None
    self._next: Future[BlockRows | None] = executor.submit(self._find, position)

  def take(self) -> list[Example] | None:
    """The examples of the next row, or None at the end of a single pass."""
    while self._current is None or self.position.row >= len(self._current.rows):
      found = self._next.result()
      if found is None:
        return None
      resumed = found.position == dataclasses.replace(self.position, row=0)
      self._current, self.position = found, self.position if resumed else found.position
      # The next block is read while the rows of this one are used.
      following = dataclasses.replace(found.position, block=found.position.block + 1)
      self._next = self._executor.submit(self._find, following)
    row = self._current.rows[self.position.row]
    self.position = dataclasses.replace(self.position, row=self.position.row + 1)
    return [self._current.examples[i] for i in row]

  def _find(self, position: StreamPosition) -> BlockRows | None:
    """The first block from `position` on that has rows."""
    epoch, order, block = position.epoch, position.order, position.block
    last = epoch + 1
    while True:
      shards = self._shards(epoch)
      if order >= len(shards):
        if not self._rules.endless:
          return None
        if epoch >= last:
          problem = f"holds no example for stream {self._index} of {self._rules.number}"
          raise DataError("split 'train'", f"{problem}: expected at least one for each of data.streams")
        epoch, order, block = epoch + 1, 0, 0
        continue
      documents = self._reader.get(shards[order], block, epoch)
      if documents is None:
        order, block = order + 1, 0
        continue
      found = self._rows_of(documents, shards[order], StreamPosition(epoch, order, block))
      if found.rows:
        return found
      block += 1

  def _shards(self, epoch: int) -> np.ndarray:
    shards = np.arange(self._reader.source.num_shards)
    if self._rules.shuffled:
      shards = np.random.default_rng((self._rules.seed, _SHARDS, epoch)).permutation(shards)
    return shards[self._index :: self._rules.number] if self._by_shard else shards

  def _rows_of(self, documents: Documents, shard: int, position: StreamPosition) -> BlockRows:
    rules, key = self._rules, (position.epoch, int(shard), position.block)
    examples = rules.objective(documents, (rules.seed, _EXAMPLES, *key))
    chosen = np.arange(len(examples.lengths))
    if not self._by_shard:
      chosen = chosen[self._index :: rules.number]
    rows = rules.shape.pack(examples, chosen, rules.pack)
    if rules.shuffled or rules.pack:
      # Packing puts the longest examples first: in that order the first batches would not be like the rest.
      seed = rules.seed if rules.shuffled else 0
      order = np.random.default_rng((seed, _ROWS, *key, self._index)).permutation(len(rows))
      rows = [rows[i] for i in order]
    return BlockRows(position, examples, rows)
