"""What every source gives: documents of token ids, in blocks, in shards.

A *shard* is read from its beginning (a file, a range of an array); a *block* is a bounded number of its documents, all
that is in memory at a time. Where a reader stands is then two integers, whatever the source.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from moe.data.vocabulary import Vocabulary

BLOCK_DOCUMENTS = 8192
BLOCK_CHARACTERS = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Arrays of several lengths one after another: the i-th is `flat[offsets[i]:offsets[i + 1]]`; offsets [n + 1]."""

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
  """A block: token ids without EOS. Plain text has `targets` only, supervised pairs have `inputs` too."""

  targets: Ragged
  inputs: Ragged | None = None

  def __len__(self) -> int:
    return len(self.targets)


class Source(Protocol):
  """Where documents come from.

  num_shards: at least 1. supervised: whether documents have inputs. varies: whether the same block differs from epoch
  to epoch. fingerprint: changes when the documents do, so that an old position is not taken for a place in new data.
  """

  num_shards: int
  supervised: bool
  varies: bool
  fingerprint: str

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    """The shard's blocks from number `start` on, always cut at the same places."""

  def texts(self, shard: int) -> Iterator[str]:
    """The shard's documents before tokenisation, for sources that have them."""


class TextSource:
  """The half of a source that all sources of raw text share: their documents tokenised, block by block."""

  supervised = False
  varies = False

  def __init__(self, vocabulary: Vocabulary):
    self._vocabulary = vocabulary

  def texts(self, shard: int) -> Iterator[str]:
    """The shard's documents, always in the same order."""
    raise NotImplementedError

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    del epoch
    for number, texts in enumerate(group(self.texts(shard))):
      if number >= start:
        yield Documents(Ragged.join(self._vocabulary.encode_many(texts)))


def group(texts: Iterable[str]) -> Iterator[list[str]]:
  """Cuts documents into blocks of at most BLOCK_DOCUMENTS, closed when they reach BLOCK_CHARACTERS."""
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
  """64 bits that depend on the parts only: not on the process, the machine or the order of files."""
  text = "\0".join(str(part) for part in parts)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out(name: str, number: int, fraction: float) -> bool:
  """Whether the `number`-th document of the file `name` is for validation.

  Evenly spaced within a file, so that one file of many documents always has both; which one of a file is first
  comes from its name, so that the same share of single-document files is held out.
  """
  place = number * fraction + stable_hash(name) / 2**64
  return math.floor(place + fraction) > math.floor(place)
