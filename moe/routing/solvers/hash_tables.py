"""Hash functions that are tables over the vocabulary, and their files. Roller et al. 2021, arXiv 2106.04426, section 3.

A table gives every token id one of B buckets. Which tokens share a bucket is decided before training: by how often each
occurs (balanced), by a baseline's embeddings (clustered, dispersed) or by which token follows it most often (predicted
future). `scripts/build_hash_table.py` makes them from a corpus.
"""

import dataclasses
import heapq
from collections.abc import Iterable

import numpy as np

from moe.config import require
from moe.routing.files import read_arrays, write_arrays
from moe.routing.solvers.hashing import hash_buckets

TABLE_FUNCTIONS = ("balanced", "clustered", "dispersed", "predicted_future")
_MAKER = "scripts/build_hash_table.py"


def balanced(frequency: np.ndarray, buckets: int, rng: np.random.Generator | None = None) -> np.ndarray:
  """int32 `[V]`: the most frequent token first, each into the emptiest bucket (ties to the lower).

  The fullest bucket holds at most the mean plus one token's frequency, for any order of tokens (Graham 1969). A single
  frequent token may exceed a bucket's share: then no table is balanced, see `largest_share`. Tokens that never occur
  have no weight, so they go to the buckets in turn.

  Args:
    frequency: `[V]`, at least 0.
    buckets: B.
    rng: for further hashes of the same frequencies, which must separate other tokens: tokens with frequencies within a
      factor of 2 come in random order.
  """
  key = frequency if rng is None else frequency * rng.uniform(0.5, 1.0, len(frequency))
  order = np.argsort(-key, kind="stable")
  seen = int(np.count_nonzero(frequency))
  table = np.empty(len(frequency), np.int32)
  heap = [(0, bucket) for bucket in range(buckets)]
  for token in order[:seen]:
    load, bucket = heap[0]
    table[token] = bucket
    heapq.heapreplace(heap, (load + frequency[token], bucket))
  unseen = order[seen:] if rng is None else rng.permutation(order[seen:])
  table[unseen] = np.arange(len(unseen)) % buckets
  return table


def dispersed(clusters: np.ndarray, buckets: int, rng: np.random.Generator) -> np.ndarray:
  """int32 `[V]`: each cluster's tokens go to the buckets in turn, so that similar tokens are separated.

  Any two buckets differ by at most 1 token within each cluster and in total: each cluster starts at the bucket after
  the previous cluster's last.

  Args:
    clusters: int `[V]`, the cluster of each token.
    buckets: B.
    rng: shuffles the tokens of a cluster.
  """
  table = np.empty(len(clusters), np.int32)
  table[np.lexsort((rng.permutation(len(clusters)), clusters))] = np.arange(len(clusters)) % buckets
  return table


def predicted_future(prediction: np.ndarray, buckets: int, hashes: int, seed: int) -> np.ndarray:
  """int32 `[N, V]`: random hashes of the token that each token predicts, `prediction` int `[V]`."""
  return hash_buckets((prediction,), buckets, hashes, seed)


def likeliest_successor(pairs: np.ndarray, counts: np.ndarray, vocabulary: int) -> np.ndarray:
  """int32 `[V]`, the prediction of a bigram model: the token that followed most often, ties to the lower id.

  A token that nothing followed predicts the most frequent successor overall.

  Args:
    pairs: int64 `[P]`, ascending: `previous * vocabulary + next` (`count_pairs`).
    counts: int64 `[P]`.
    vocabulary: V.
  """
  previous, following = np.divmod(pairs, vocabulary)
  overall = np.bincount(following, counts, minlength=vocabulary).argmax()
  prediction = np.full(vocabulary, overall, np.int32)
  order = np.lexsort((-following, counts))  # the last assignment to an index wins: the likeliest
  prediction[previous[order]] = following[order]
  return prediction


def count_pairs(parts: Iterable[tuple[np.ndarray, np.ndarray]], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
  """The distinct pairs, `previous * vocabulary + next`, int64 `[P]` ascending, and how often each occurs, `[P]`.

  Args:
    parts: pieces of a corpus, each as previous ids `[n]` and next ids `[n]`.
    vocabulary: V.
  """
  pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
  for previous, following in parts:
    new, times = np.unique(previous.astype(np.int64) * vocabulary + following, return_counts=True)
    pairs, inverse = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    counts = np.bincount(inverse, np.concatenate([counts, times])).astype(np.int64)
  return pairs, counts


def largest_share(table: np.ndarray, frequency: np.ndarray, buckets: int) -> float:
  """The share of all tokens in the fullest bucket: 1 / B when balanced, at least the most frequent token's share."""
  return float(np.bincount(table, frequency, minlength=buckets).max() / max(frequency.sum(), 1))


@dataclasses.dataclass(frozen=True)
class HashTable:
  """The contents of a hash table's file.

  Attributes:
    buckets: int32 `[N, V]`, each from 0 to E / N - 1.
    experts: E.
    vocabulary: fingerprint of the vocabulary whose ids these are.
    function: one of TABLE_FUNCTIONS.
    source: what it was made from, for human readers.
  """

  buckets: np.ndarray
  experts: int
  vocabulary: str
  function: str
  source: str

  def write(self, path: str) -> None:
    """Raises `FileExistsError` rather than overwriting."""
    write_arrays(path, **dataclasses.asdict(self))

  @classmethod
  def read(cls, path: str) -> "HashTable":
    """Raises `ConfigError` if there is no such file."""
    arrays = read_arrays("table", path, [field.name for field in dataclasses.fields(cls)], _MAKER)
    buckets = arrays.pop("buckets")
    return cls(buckets, **{name: array.item() for name, array in arrays.items()})

  def checked(
    self, path: str, function: str, hashes: int, experts: int, vocabulary: str | None, size: int
  ) -> np.ndarray:
    """`buckets` padded to `[N, size]` with -1, no expert, for a model's ids beyond its vocabulary.

    Raises:
      ConfigError: it was made for another function, vocabulary, or number of experts or hashes.
    """

    def same(what: str, found, wanted) -> None:
      require(
        found == wanted, "table", path, f"expected a table made for {what} {wanted}, not {found}; make it with {_MAKER}"
      )

    same("function", self.function, function)
    same("experts", self.experts, experts)
    same("hashes", len(self.buckets), hashes)
    if vocabulary is not None:
      same("the vocabulary", self.vocabulary, vocabulary)
    tokens = self.buckets.shape[1]
    require(tokens <= size, "table", path, f"expected at most the {size} tokens of model.vocab_size, found {tokens}")
    return np.pad(self.buckets, ((0, 0), (0, size - tokens)), constant_values=-1)


def own_buckets(path: str, hashes: int, buckets: int, size: int) -> np.ndarray:
  """int32 `[N, V]`, the table in a file that the user made: integers `[V]` or `[N, V]` by the name `buckets`.

  Args:
    path: of the file.
    hashes: N.
    buckets: B, above every entry.
    size: V, token ids of the model; each needs an entry.

  Raises:
    ConfigError: there is no such file, or it holds something else.
  """
  table = np.atleast_2d(read_arrays("table", path, ["buckets"], "numpy.savez(path, buckets=...)")["buckets"])
  about = f"expected integers [{size}], one for each token id, or [{hashes}, {size}]"
  fits = table.shape == (hashes, size) and np.issubdtype(table.dtype, np.integer)
  require(fits, "table", path, f"{about}, found {table.dtype} {list(table.shape)}")
  within = table.min() >= 0 and table.max() < buckets
  require(within, "table", path, f"expected entries from 0 to {buckets - 1}, found {table.min()} to {table.max()}")
  return table.astype(np.int32)
