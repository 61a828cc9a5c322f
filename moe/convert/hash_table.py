"""The table of a hash layer, which assigns token ids to experts, made from a corpus or a trained baseline."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from moe.config import require
from moe.data import DataConfig, DataError, Vocabulary, make_source, make_vocabulary
from moe.data.documents import Ragged
from moe.data.source import Source
from moe.evaluation.restore import Trained, check_vocabulary
from moe.routing.solvers.clustering import assign, k_means
from moe.routing.solvers.hash_tables import (
  HashTable,
  balanced,
  count_pairs,
  dispersed,
  likeliest_successor,
  predicted_future,
)

OF_EMBEDDINGS = ("clustered", "dispersed")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What tables are made from.

  Attributes:
    name: of the data.
    vocabulary: of the data.
    pairs, counts: as `moe.routing.solvers.hash_tables.count_pairs`.
  """

  name: str
  vocabulary: Vocabulary
  pairs: np.ndarray
  counts: np.ndarray

  @property
  def frequency(self) -> np.ndarray:
    """int64 `[V]`: how often a decoder reads each id: a 0, then the document."""
    size = self.vocabulary.size
    return np.bincount(self.pairs // size, self.counts, minlength=size).astype(np.int64)


def read_corpus(config: DataConfig, limit: int = 100_000_000) -> Corpus:
  """Reads about `limit` tokens of the training split at most.

  Raises:
    ConfigError, DataError: the data cannot be read, or there is no text.
  """
  vocabulary = make_vocabulary(config)
  pairs, counts = count_pairs(_reads(make_source(config, "train", vocabulary), limit), vocabulary.size)
  if not len(pairs):
    raise DataError(config.source.corpus, "has no training text")
  return Corpus(config.source.corpus, vocabulary, pairs, counts)


def make_table(
  function: str, corpus: Corpus, experts: int, *, hashes: int = 1, seed: int = 0, baseline: Trained | None = None
) -> HashTable:
  """The table of one function of `moe.routing.solvers.hash_tables.TABLE_FUNCTIONS`.

  Args:
    function: of them.
    corpus: what it is made from, or what has the vocabulary of the baseline.
    experts: E.
    hashes: N of MultiHash, sections that the experts are divided into.
    seed: of what is random in it.
    baseline: a trained model, for functions of its embeddings.

  Raises:
    ConfigError: the baseline was trained with another vocabulary; the experts cannot be divided.
  """
  divides = experts >= 1 and hashes >= 1 and experts % hashes == 0
  require(divides, "hashes", hashes, f"expected a divisor of the {experts} experts")
  buckets, size, name = experts // hashes, corpus.vocabulary.size, corpus.name
  draws = [np.random.default_rng([seed, number]) for number in range(hashes)]
  if function in OF_EMBEDDINGS:
    check_vocabulary(baseline, corpus.vocabulary)
    embeddings = np.asarray(baseline.params["embedding"]["table"])[:size]
    clusters = [_clusters(embeddings, buckets, seed + number) for number in range(hashes)]
    spread = (dispersed(one, buckets, draw) for one, draw in zip(clusters, draws))
    tables = clusters if function == "clustered" else list(spread)
  elif function == "predicted_future":
    prediction = likeliest_successor(corpus.pairs, corpus.counts, size)
    tables = list(predicted_future(prediction, buckets, hashes, seed))
  else:
    tables = [balanced(corpus.frequency, buckets, draw) for draw in [None, *draws[1:]]]
  return HashTable(np.stack(tables).astype(np.int32), experts, corpus.vocabulary.fingerprint, function, name)


def _clusters(embeddings: np.ndarray, buckets: int, seed: int) -> np.ndarray:
  """int32 `[V]`, the k-means clusters of embeddings `[V, d]`."""
  centroids, _ = k_means(embeddings, buckets, jax.random.key(seed))
  return np.asarray(assign(jnp.asarray(embeddings), centroids))


def _reads(source: Source, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """What a decoder reads and what it should predict, `[n]` each, block by block until about `limit` tokens."""
  for shard in range(source.num_shards):
    for block in source.blocks(shard, 0, 0):
      for documents in filter(None, (block.inputs, block.targets)):
        if limit <= 0:
          return
        previous, following = _shifted(documents)
        limit -= len(following)
        yield previous, following


def _shifted(documents: Ragged) -> tuple[np.ndarray, np.ndarray]:
  """The token before each token, 0 at the start of a document, and the tokens."""
  first, last = documents.offsets[0], documents.offsets[-1]
  following = np.asarray(documents.flat[first:last])
  previous = np.concatenate([following[:1] * 0, following[:-1]])
  starts = documents.offsets[:-1][documents.lengths > 0] - first
  previous[starts] = 0
  return previous, following
