"""Documents of token ids, in blocks, in shards.

A *shard* is read from its beginning (a file, a range of an array). A *block* is a bounded number of its documents, and
only whole blocks are in memory. A position in any source is then two integers.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from moe.data.errors import DataError

BLOCK_DOCUMENTS = 8192
BLOCK_CHARACTERS = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Arrays of different lengths, concatenated: array i is `flat[offsets[i]:offsets[i + 1]]`; offsets [n + 1]."""

  flat: np.ndarray
  offsets: np.ndarray

  @classmethod
  def join(cls, arrays: Sequence[np.ndarray]) -> "Ragged":
    lengths = np.fromiter((len(array) for array in arrays), np.int64, len(arrays))
    flat = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    return self.flat[self.offsets[i] : self.offsets[i + 1]]

  @property
  def lengths(self) -> np.ndarray:
    return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class Documents:
  """A block of token ids without EOS. Plain text has `targets` only; supervised pairs also have `inputs`."""

  targets: Ragged
  inputs: Ragged | None = None

  def __len__(self) -> int:
    return len(self.targets)


def check_ids(documents: Ragged, size: int, name: Callable[[int], str]) -> None:
  """Checks that every id is one of a vocabulary.

  Args:
    documents: of any integers.
    size: of the vocabulary.
    name: what to call document i in an error.

  Raises:
    DataError: the first id that is not.
  """
  first, last = documents.offsets[0], documents.offsets[-1]
  ids = documents.flat[first:last]
  if len(ids) == 0 or (ids.min() >= 0 and ids.max() < size):
    return
  at = int(np.flatnonzero((ids < 0) | (ids >= size))[0])
  number = int(np.searchsorted(documents.offsets, first + at, "right")) - 1
  position = first + at - documents.offsets[number]
  problem = f"has id {ids[at]} at position {position}: expected ids from 0 to {size - 1}, those of the vocabulary"
  raise DataError(name(number), problem)


def group(texts: Iterable[str]) -> Iterator[list[str]]:
  """Blocks of at most BLOCK_DOCUMENTS documents; a block also ends when it reaches BLOCK_CHARACTERS."""
  block, characters = [], 0
  for text in texts:
    block.append(text)
    characters += len(text)
    if len(block) == BLOCK_DOCUMENTS or characters >= BLOCK_CHARACTERS:
      yield block
      block, characters = [], 0
  if block:
    yield block


def stable_hash(*parts: object) -> int:
  """64 bits that depend on the parts only, not on the process or the machine."""
  text = "\0".join(str(part) for part in parts)
  # Names of files may have bytes that are not UTF-8.
  return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big")


def held_out(name: str, number: int, fraction: float) -> bool:
  """Whether document `number` of the file `name` is for validation.

  Held-out documents are evenly spaced within a file, so a file of many documents always has both splits. The first one
  depends on the file's name, so that the same fraction of single-document files is held out.
  """
  before = number * fraction + stable_hash(name) / 2**64
  return math.floor(before + fraction) > math.floor(before)
