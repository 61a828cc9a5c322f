"""Mixtures of seqio tasks: in every block, examples of each task in proportion to its rate.

How many examples of a task the first n blocks have is arithmetic, not chance, so a position in a mixture is a position
in each of its tasks, and a block has the same examples whether or not the run was interrupted, on any number of hosts.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.batch import Example
from moe.data.documents import Documents, Ragged, stable_hash
from moe.data.errors import DataError
from moe.data.formats.seqio_reading import BLOCK_EXAMPLES, TaskSource


class MixtureSource:
  """The tasks of a mixture as one source of a single shard.

  With `repeats`, tasks are read by their rates, again and again, each in turn from where it stopped; an epoch is as
  many examples as the tasks have rows together. Without, every example of every task is read once per epoch, and the
  tasks' examples lie evenly among each other: the rates should be the tasks' sizes.

  Args:
    name: of the mixture.
    sources: its tasks; at least one.
    rates: of each, positive.
    repeats: see above.
    seed: of the order of each task's shards where they repeat.
  """

  num_shards = 1
  varies = True
  skipped = 0

  def __init__(self, name: str, sources: Sequence[TaskSource], rates: Sequence[float], repeats: bool, seed: int):
    self._name, self._sources, self._repeats, self._seed = name, sources, repeats, seed
    self._shares = np.array(rates, np.float64) / math.fsum(rates)
    self._blocks = math.ceil(sum(source.reader.rows for source in sources) / BLOCK_EXAMPLES)
    self._left: dict[int, list[Iterator[Example]]] = {}
    self.supervised = sources[0].supervised
    parts = zip((source.fingerprint for source in sources), self._shares.tolist())
    self.fingerprint = f"{stable_hash(name, repeats, self._blocks, *parts):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    del shard
    start = start + epoch * self._blocks if self._repeats else start
    end = (epoch + 1) * self._blocks if self._repeats else sys.maxsize
    firsts = self._taken(start)
    streams = self._left.pop(start, None)
    if streams is None:
      streams = [self._stream(source, first, epoch) for source, first in zip(self._sources, firsts)]
    unfinished = set(range(len(streams)))
    for number in range(start, end):
      lasts = self._taken(number + 1)
      parts = [list(itertools.islice(streams[i], last - firsts[i])) for i, last in enumerate(lasts)]
      yield self._together(parts)
      unfinished -= {i for i, part in enumerate(parts) if len(part) < lasts[i] - firsts[i]}
      if not unfinished:
        return
      firsts = lasts
    self._left = {end: streams}  # for the next epoch, which reads on from here

  def _together(self, parts: Sequence[list[Example]]) -> Documents:
    """One block of the examples of all tasks, those of each spread evenly over it."""
    order = sorted(((i + 0.5) / len(part), task, i) for task, part in enumerate(parts) for i in range(len(part)))
    examples = [parts[task][i] for _, task, i in order]
    targets = Ragged.join([targets for _, targets in examples])
    return Documents(targets, Ragged.join([inputs for inputs, _ in examples]) if self.supervised else None)

  def _taken(self, blocks: int) -> list[int]:
    """How many examples of each task the first `blocks` blocks have: within one of its share."""
    return np.floor(blocks * BLOCK_EXAMPLES * self._shares + 0.5).astype(np.int64).tolist()

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._name, "is a mixture of seqio tasks, which gives token ids and no text")

  def _stream(self, source: TaskSource, first: int, epoch: int) -> Iterator[Example]:
    """A task's examples from number `first` on: of the epoch, or of all epochs, each as long as the first."""
    if not self._repeats:
      yield from itertools.islice(self._read(source, epoch), first, None)
      return
    length = 0
    for length, example in enumerate(self._read(source, 0), 1):
      if length > first:
        yield example
    if not length:
      raise DataError(source.name, "holds no example: expected at least one, of a task in a mixture")
    epoch, passed = divmod(max(first, length), length)
    while True:
      number = 0
      for number, example in enumerate(itertools.islice(self._read(source, epoch), length), 1):
        if number > passed:
          yield example
      if number < length:
        problem = f"gives {number} examples in epoch {epoch} and {length} in epoch 0"
        raise DataError(source.name, f"{problem}: expected as many in every epoch, of a task in a mixture")
      epoch, passed = epoch + 1, 0

  def _read(self, source: TaskSource, epoch: int) -> Iterator[Example]:
    """A task's examples in one epoch."""
    shards = np.arange(source.num_shards)
    if self._repeats:
      shards = np.random.default_rng((self._seed, epoch)).permutation(shards)
    for shard in shards.tolist():
      for block in source.blocks(shard, 0, epoch):
        for i in range(len(block)):
          inputs = block.targets if block.inputs is None else block.inputs  # of plain text, left out again
          yield inputs[i], block.targets[i]
