"""Token ids from arrays, memory-mapped or in a bucket: a directory that `scripts/tokenize_corpus.py` writes."""

import dataclasses
import json
from collections.abc import Iterator, Mapping

import numpy as np

from moe.config import require
from moe.data.documents import BLOCK_DOCUMENTS, Documents, Ragged, check_ids, stable_hash
from moe.data.errors import DataError
from moe.data.formats.token_directory import open_feature, read_meta
from moe.data.source import SourceConfig, require_split
from moe.data.vocabulary import StoredVocabulary, Vocabulary
from moe.files import AnyPath, open_path

_BLOCK_TOKENS = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class TokensConfig(SourceConfig, name="tokens"):
  """A token directory, which needs neither TensorFlow nor seqio.

  Attributes:
    path: the directory, which may lie in a bucket (`gs://`, `s3://`).
  """

  stores_vocabulary = True

  path: str

  def __post_init__(self):
    require(bool(self.path.strip()), "path", self.path, "expected a directory")

  @property
  def corpus(self) -> str:
    return self.path

  def stored_vocabulary(self) -> StoredVocabulary:
    directory = open_path("path", self.path)
    return StoredVocabulary(str(directory), read_meta(directory)["vocabulary"])

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> "TokensSource":
    return TokensSource(open_path("path", self.path), split, vocabulary.size)


class TokensSource:
  """One split of a token directory. Each block is a shard, since any part of an array is read equally fast.

  Raises:
    ConfigError: the directory does not exist. DataError: the split does not, files do not have the lengths in
      `meta.json`, or ids are beyond the vocabulary.
  """

  varies = False
  skipped = 0

  def __init__(self, directory: AnyPath, split: str, vocabulary_size: int):
    meta = read_meta(directory)
    self._vocabulary_size = vocabulary_size
    require_split(split, meta["splits"], str(directory))
    self._features = {name: open_feature(directory, split, name, meta) for name in meta["features"]}
    self.supervised = "inputs" in self._features
    self._bounds = _block_bounds(self._features["targets"].offsets)
    self.num_shards = max(1, len(self._bounds) - 1)
    self.fingerprint = f"{stable_hash(json.dumps(meta['splits'][split]), meta['vocabulary']['fingerprint']):016x}"

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Documents]:
    del epoch
    if start == 0 and len(self._bounds) > 1:
      first, last = self._bounds[shard : shard + 2]
      yield Documents(**{name: self._part(name, first, last) for name in self._features})

  def _part(self, name: str, first: int, last: int) -> Ragged:
    """A feature of the documents from `first` to `last`, with checked ids."""
    feature = self._features[name]
    part = feature.part(first, last)
    check_ids(part, self._vocabulary_size, lambda i: f"{feature.path}, document {first + i}")
    return part

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError("tokens", "a directory of token ids has no text")


def _block_bounds(offsets: np.ndarray) -> np.ndarray:
  """The document numbers at which blocks begin, and the number of documents; blocks are bounded in both."""
  bounds = [0]
  while bounds[-1] < len(offsets) - 1:
    first = bounds[-1]
    fitting = int(np.searchsorted(offsets, offsets[first] + _BLOCK_TOKENS, "right")) - 1
    bounds.append(min(max(fitting, first + 1), first + BLOCK_DOCUMENTS, len(offsets) - 1))
  return np.array(bounds)
