"""Tables of hash layers: how even they are, what they put together and apart, and their files."""

import collections
import pathlib

import numpy as np
import pytest

from moe.config import ConfigError
from moe.routing import Site
from moe.routing.methods.hash_layers import HashConfig
from moe.routing.solvers.hash_tables import (
  HashTable,
  balanced,
  count_pairs,
  dispersed,
  largest_share,
  likeliest_successor,
  predicted_future,
)
from moe.routing.solvers.hashing import hash_buckets

VOCABULARY, BUCKETS = 500, 8
ZIPF = (10_000 / np.arange(1, VOCABULARY + 1)).astype(np.int64)


def loads(table, frequency=ZIPF, buckets=BUCKETS):
  return np.bincount(table, frequency, minlength=buckets)


def generator(seed=0):
  return np.random.default_rng(seed)


def test_the_most_frequent_goes_first_into_the_emptiest():
  np.testing.assert_array_equal(balanced(np.array([1, 5, 4, 3, 3]), 2), [1, 0, 1, 1, 0])


@pytest.mark.parametrize("frequency", [ZIPF, ZIPF[::-1], np.ones(VOCABULARY), generator().integers(1, 99, VOCABULARY)])
@pytest.mark.parametrize("rng", [None, generator()])
def test_no_bucket_is_fuller_than_the_mean_and_one_token(frequency, rng):
  filled = loads(balanced(frequency, BUCKETS, rng), frequency)
  assert filled.max() <= filled.mean() + frequency.max()
  assert filled.max() - filled.min() <= frequency.max()


def test_it_is_as_even_as_the_vocabulary_allows():
  flat = ZIPF + 50  # no token is more than a bucket's share
  assert 1 / BUCKETS <= largest_share(balanced(flat, BUCKETS), flat, BUCKETS) < 1.005 / BUCKETS
  trap = np.array([700, 100, 100, 100])
  assert largest_share(balanced(trap, 4), trap, 4) == 0.7


def test_further_hashes_are_as_even_and_part_the_tokens_that_the_first_puts_together():
  frequency = ZIPF + 50
  first, second = balanced(frequency, BUCKETS), balanced(frequency, BUCKETS, generator())
  assert loads(second, frequency).max() < 1.01 * loads(second, frequency).mean()
  together = (first[:, None] == first) & ~np.eye(VOCABULARY, dtype=bool)
  again = (second[:, None] == second)[together].mean()
  assert abs(again - 1 / BUCKETS) < 0.02


def test_tokens_that_never_occur_are_dealt_evenly():
  frequency = np.where(np.arange(VOCABULARY) < 20, ZIPF, 0)
  for rng in (None, generator()):
    counts = np.bincount(balanced(frequency, BUCKETS, rng)[20:], minlength=BUCKETS)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("sizes", [[8] * 8, [100, 30, 7, 1, 0, 13, 2, 9]])
def test_dispersed_spreads_every_cluster_over_all_buckets_evenly(sizes):
  clusters = generator().permutation(np.repeat(np.arange(8), sizes))
  table = dispersed(clusters, 8, generator())
  counts = np.histogram2d(clusters, table, bins=(np.arange(9), np.arange(9)))[0]
  assert (counts.max(1) - counts.min(1) <= 1).all()
  assert np.ptp(counts.sum(0)) <= 1
  assert (table != dispersed(clusters, 8, generator(1))).any()


def test_pairs_are_counted_over_all_parts_and_the_likeliest_successor_is_the_most_frequent():
  parts = [(generator(i).integers(0, 9, 200), generator(i + 9).integers(0, 9, 200)) for i in range(3)]
  counted = collections.Counter((int(a), int(b)) for part in parts for a, b in zip(*part, strict=True))
  pairs, counts = count_pairs(parts, 10)
  assert {divmod(int(p), 10): int(c) for p, c in zip(pairs, counts, strict=True)} == counted
  prediction = likeliest_successor(pairs, counts, 10)
  for token in range(9):
    assert prediction[token] == max(range(10), key=lambda after, t=token: (counted[t, after], -after))
  # Nothing follows 9: it predicts what follows most often.
  totals = collections.Counter(int(b) for part in parts for b in part[1])
  assert prediction[9] == max(range(10), key=lambda after: (totals[after], -after))


def test_the_predicted_future_goes_where_the_hash_of_the_real_one_would():
  prediction = generator().integers(0, VOCABULARY, VOCABULARY)
  table, real = predicted_future(prediction, 4, 2, 3), hash_buckets((np.arange(VOCABULARY),), 4, 2, 3)
  np.testing.assert_array_equal(table, real[:, prediction])


@pytest.fixture
def path(tmp_path):
  """A file of a table of 2 hashes for 8 experts over 500 tokens."""
  table = np.stack([balanced(ZIPF, 4), balanced(ZIPF, 4, generator())])
  HashTable(table, 8, "v1", "balanced", "a corpus").write(str(tmp_path / "table.npz"))
  return str(tmp_path / "table.npz")


def stored(path, *, function="balanced", hashes=2, experts=8, size=VOCABULARY, vocabulary="v1"):
  config = HashConfig(function=function, hashes=hashes, table=path)
  return config.stored(Site(16, experts, size), vocabulary)


def test_a_file_comes_back_as_the_state_of_a_router(path):
  table = stored(path)["table"]
  assert table.dtype == np.int32
  np.testing.assert_array_equal(table, [balanced(ZIPF, 4), balanced(ZIPF, 4, generator())])
  assert HashConfig().stored(Site(16, 8, VOCABULARY), "v1") == {}


def test_a_home_folder_is_found(path, monkeypatch):
  monkeypatch.setenv("HOME", str(pathlib.Path(path).parent))
  np.testing.assert_array_equal(stored("~/table.npz")["table"], stored(path)["table"])


def test_ids_that_only_the_model_has_have_no_expert(path):
  table = stored(path, size=512)["table"]
  assert table.shape == (2, 512) and (table[:, VOCABULARY:] == -1).all()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"vocabulary": "v2"},
      "expected a table made for the vocabulary v2, not v1; make it with scripts/build_hash_table.py",
    ),
    ({"size": 499}, r"expected at most the 499 tokens of model\.vocab_size, found 500"),
    ({"experts": 16}, "expected a table made for experts 16, not 8"),
    ({"hashes": 1}, "expected a table made for hashes 1, not 2"),
    ({"function": "dispersed"}, "expected a table made for function dispersed, not balanced"),
  ],
)
def test_a_file_made_for_something_else_is_refused(path, changes, message):
  with pytest.raises(ConfigError, match=rf"^table = '.*table\.npz': {message}"):
    stored(path, **changes)


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_refused(tmp_path, path):
  with pytest.raises(
    ConfigError, match=r"table = 'none\.npz': expected a file made by scripts/build_hash_table.py, found none"
  ):
    stored("none.npz")
  (tmp_path / "text").write_text("not a table")
  np.save(tmp_path / "array.npy", np.zeros(3))
  cut = tmp_path / "cut.npz"
  cut.write_bytes(pathlib.Path(path).read_bytes()[:200])
  for name in ("text", "array.npy", "cut.npz"):
    with pytest.raises(
      ConfigError, match=r"expected an \.npz file made by scripts/build_hash_table.py, not a damaged or other file"
    ):
      stored(str(tmp_path / name))
  np.savez(tmp_path / "other.npz", centroids=np.zeros(3))
  with pytest.raises(
    ConfigError, match=r"expected a file made by .*, with buckets, experts, vocabulary, function, source"
  ):
    stored(str(tmp_path / "other.npz"))


def test_a_file_is_never_overwritten(path):
  with pytest.raises(FileExistsError):
    HashTable(np.zeros((1, 3), np.int32), 8, "v1", "balanced", "").write(path)
