"""Streams of rows, endless or a single pass, and their positions.

The position of a stream is five integers: epoch, index in the epoch's order of shards, block, row, and which stream has
the block's first row. Everything else is derived from the position and the source, so a restored stream gives the rows
that it would have given.
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
  """Reads blocks by number. One that follows another costs one block; any other reads the shard from its start.

  Args:
    source: of the blocks.
    kept: how many blocks are kept, and how many places to read on from.
  """

  def __init__(self, source: Source, kept: int):
    self.source = source
    self.kept = kept
    self._blocks: OrderedDict[tuple[int, int, int], Documents | None] = OrderedDict()
    self._open: OrderedDict[tuple[int, int, int], Iterator[Documents]] = OrderedDict()

  def get(self, shard: int, block: int, epoch: int) -> Documents | None:
    """The block, or None after the shard's last."""
    version = epoch if self.source.varies else 0
    key = (shard, block, version)
    if key not in self._blocks:
      self._blocks[key] = self._read(shard, block, version)
    self._blocks.move_to_end(key)
    while len(self._blocks) > self.kept:
      self._blocks.popitem(last=False)
    return self._blocks[key]

  def _read(self, shard: int, block: int, version: int) -> Documents | None:
    blocks = self._open.pop((shard, block, version), None) or self.source.blocks(shard, block, version)
    documents = next(blocks, None)
    if documents is not None:
      self._open[shard, block + 1, version] = blocks
    while len(self._open) > self.kept:
      self._open.popitem(last=False)
    return documents


@dataclasses.dataclass(frozen=True)
class StreamPosition:
  """Where the next row of a stream comes from: `row` rows of the block are already taken.

  Streams that share the rows of a block deal them out, beginning with stream `first`.
  """

  epoch: int = 0
  order: int = 0
  block: int = 0
  row: int = 0
  first: int = 0


@dataclasses.dataclass(frozen=True)
class BlockRows:
  """Rows of one block, as numbers of its examples, in the order in which a stream gives them.

  Attributes:
    position: of the first row.
    following: of the first row in the next block.
    examples: of the block.
    rows: the numbers of the examples in each row.
  """

  position: StreamPosition
  following: StreamPosition
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


def has_own_shards(source: Source, streams: int) -> bool:
  """Whether each of so many streams has shards of its own; if there are fewer, all share the rows of every block."""
  return source.num_shards >= streams


class RowMaker:
  """Makes the rows of blocks, each once for all streams that share them.

  Attributes:
    by_shard: whether each stream has shards of its own, as `has_own_shards` says.
    num_shards: of the source.
  """

  def __init__(self, rules: StreamRules, reader: BlockReader):
    self._rules, self._reader = rules, reader
    self.num_shards = reader.source.num_shards
    self.by_shard = has_own_shards(reader.source, rules.number)
    self._made: OrderedDict[tuple[int, int, int], tuple[Examples, list[np.ndarray]] | None] = OrderedDict()

  def get(self, shard: int, place: StreamPosition, stream: int) -> BlockRows | None:
    """The rows of a block of this shard that a stream gives; None after the shard's last block.

    Streams that share them deal out all rows of all blocks, so that none is ever more than one ahead of the others: as
    they give rows at the same pace, they are always in the same block, or at its end.
    """
    key = place.epoch, int(shard), place.block
    if key not in self._made:
      documents = self._reader.get(shard, place.block, place.epoch)
      own = stream if self.by_shard else 0
      self._made[key] = None if documents is None else self._make(documents, key, own)
    self._made.move_to_end(key)
    self._forget()
    if (made := self._made[key]) is None:
      return None
    examples, rows = made
    following = dataclasses.replace(place, block=place.block + 1)
    if not self.by_shard:
      number = self._rules.number
      following = dataclasses.replace(following, first=(place.first + len(rows)) % number)
      rows = rows[(stream - place.first) % number :: number]
    return BlockRows(place, following, examples, rows)

  def _forget(self) -> None:
    """Forgets the blocks that were needed longest ago, unless the others are too small to have rows for all streams."""
    rows = [0 if made is None else len(made[1]) for made in self._made.values()]
    left = sum(rows)
    for count in rows[: -self._reader.kept]:
      left -= count
      if not self.by_shard and left < 2 * self._rules.number:
        return
      self._made.popitem(last=False)

  def _make(self, documents: Documents, key: tuple[int, int, int], stream: int) -> tuple[Examples, list[np.ndarray]]:
    rules = self._rules
    examples = rules.objective(documents, (rules.seed, _EXAMPLES, *key))
    rows = rules.shape.pack(examples, rules.pack)
    if rules.shuffled or rules.pack:
      # Packing puts the longest examples first: in that order the first batches would not be like the rest.
      seed = rules.seed if rules.shuffled else 0
      order = np.random.default_rng((seed, _ROWS, *key, stream)).permutation(len(rows))
      rows = [rows[i] for i in order]
    return examples, rows


class RowStream:
  """Stream `index` of `rules.number`: a share of the shards, or of every block's rows if there are fewer shards."""

  def __init__(self, rules: StreamRules, maker: RowMaker, index: int, executor: Executor, position: StreamPosition):
    self._rules, self._maker, self._index, self._executor = rules, maker, index, executor
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
      self._next = self._executor.submit(self._find, found.following)
    row = self._current.rows[self.position.row]
    self.position = dataclasses.replace(self.position, row=self.position.row + 1)
    return [self._current.examples[i] for i in row]

  def _find(self, position: StreamPosition) -> BlockRows | None:
    """The first block from `position` on that has rows."""
    place = dataclasses.replace(position, row=0)
    # A shared epoch of fewer rows than streams has one for each of them in turn.
    last = place.epoch + (1 if self._maker.by_shard else self._rules.number)
    while True:
      shards = self._shards(place.epoch)
      if place.order >= len(shards):
        if not self._rules.endless:
          return None
        if place.epoch >= last:
          problem = f"holds no example for stream {self._index} of {self._rules.number}"
          raise DataError("split 'train'", f"{problem}: expected at least one for each of data.streams")
        place = dataclasses.replace(place, epoch=place.epoch + 1, order=0)
        continue
      found = self._maker.get(shards[place.order], place, self._index)
      if found is None:
        place = dataclasses.replace(place, order=place.order + 1, block=0)
      elif found.rows:
        return found
      else:
        place = found.following

  def _shards(self, epoch: int) -> np.ndarray:
    shards = np.arange(self._maker.num_shards)
    if self._rules.shuffled:
      shards = np.random.default_rng((self._rules.seed, _SHARDS, epoch)).permutation(shards)
    return shards[self._index :: self._rules.number] if self._maker.by_shard else shards
