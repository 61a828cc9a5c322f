"""Where documents come from: what every source provides, and the config section that chooses one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Protocol

from moe.config import Choice
from moe.data.documents import Documents, Ragged, group
from moe.data.errors import DataError
from moe.data.vocabulary import Vocabulary

SPLITS = ("train", "validation")


def require_split(split: str, splits: Iterable[str], corpus: str) -> None:
  """Raises `DataError` unless the corpus has the split."""
  if split not in splits:
    raise DataError(f"split {split!r}", f"expected one of {', '.join(splits)}, the splits of {corpus}")


class Source(Protocol):
  """The documents of one split.

  Attributes:
    num_shards: at least 1.
    supervised: whether documents have inputs as well as targets.
    varies: whether the same block differs from epoch to epoch.
    fingerprint: changes when the documents do, so that a position in old data is not used in new data.
  """

  num_shards: int
  supervised: bool
  varies: bool
  fingerprint: str

  @property
  def skipped(self) -> int:
    """Bad records passed over so far."""

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    """The shard's blocks from number `start` on. Block boundaries are always the same."""

  def texts(self, shard: int) -> Iterator[str]:
    """The shard's documents before tokenization.

    Raises:
      DataError: the source has no text.
    """


class TextSource:
  """Base of the sources of raw text: tokenizes their documents block by block."""

  supervised = False
  varies = False
  skipped: int = 0

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


class SourceConfig(Choice):
  """The section `data.source`. Each source is one file of `moe/data/sources`, with a frozen dataclass of its fields.

  Attributes:
    stores_vocabulary: whether the source consists of token ids, or of labelled pictures, and knows their vocabulary.
    gives_pictures: whether it gives pictures (`moe.data.images`) in place of documents.
  """

  stores_vocabulary: ClassVar[bool] = False
  gives_pictures: ClassVar[bool] = False

  @property
  def corpus(self) -> str:
    """What is read, in a word or two, for printed lines."""
    return self.name

  def stored_vocabulary(self) -> Vocabulary | None:
    """The vocabulary of the stored token ids; None for a source of text."""
    return None

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> Source:
    """The documents of one split.

    Args:
      split: "train" or "validation"; a source may know others.
      vocabulary: tokenizes text.
      lengths: tokens per row of "inputs" and "targets", for preprocessing that depends on them.
      seed: of preprocessing that is random.

    Raises:
      ConfigError: a wrong field. DataError: the data cannot be read, or do not have the split.
    """
    raise NotImplementedError
