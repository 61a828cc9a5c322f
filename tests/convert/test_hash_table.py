"""Tables of hash layers, made of a corpus and of a model's embeddings."""

import collections
import types

import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.convert.hash_table import make_table, read_corpus
from moe.data import DataConfig, DataError, make_source, make_vocabulary
from moe.routing.solvers.hash_tables import largest_share, likeliest_successor
from tests.training.tiny import write_corpus

EXPERTS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")
  source = {"name": "text", "path": str(corpus), "validation_fraction": 0.2}
  fields = {"vocabulary": "bytes", "extra_ids": 0, "inputs_length": 0, "targets_length": 16, "batch_size": 4}
  return build(DataConfig, {"source": source, "objective": "causal_lm", **fields})


@pytest.fixture(scope="module")
def corpus(config):
  return read_corpus(config)


def baseline(corpus, embeddings, **changes):
  """What a trained model is to a table: its embeddings, and its vocabulary."""
  words = corpus.vocabulary
  about = {"name": words.name, "size": words.size, "fingerprint": words.fingerprint} | changes
  return types.SimpleNamespace(params={"embedding": {"table": embeddings}}, vocabulary=about)


def test_pairs_are_counted_within_documents_each_of_which_begins_with_a_0(config, corpus):
  words = make_vocabulary(config)
  source, expected = make_source(config, "train", words), collections.Counter()
  for text in (text for shard in range(source.num_shards) for text in source.texts(shard)):
    ids = [int(one) for one in words.encode(text)]
    expected.update(zip([0, *ids], ids, strict=False))
  found = dict(zip(map(tuple, np.stack(np.divmod(corpus.pairs, words.size), 1).tolist()), corpus.counts.tolist()))
  assert found == expected
  read = collections.Counter()
  for (previous, _), times in expected.items():
    read[previous] += times
  assert {token: int(times) for token, times in enumerate(corpus.frequency) if times} == read


def test_a_limit_ends_the_reading(config, corpus):
  assert 0 < read_corpus(config, limit=1).counts.sum() <= corpus.counts.sum()
  with pytest.raises(DataError, match="has no training text"):
    read_corpus(config, limit=0)


@pytest.mark.parametrize("hashes", [1, 2])
def test_balanced_tables_hold_equal_shares_of_the_text(corpus, hashes):
  found, frequency = make_table("balanced", corpus, EXPERTS, hashes=hashes), corpus.frequency
  buckets = EXPERTS // hashes
  assert found.buckets.shape == (hashes, corpus.vocabulary.size) and found.experts == EXPERTS
  bound = 1 / buckets + frequency.max() / frequency.sum()  # Graham 1969
  for table in found.buckets:
    assert set(table.tolist()) == set(range(buckets)) and largest_share(table, frequency, buckets) <= bound
  assert len(np.unique(found.buckets, axis=0)) == hashes  # each separates other tokens


def test_clusters_are_kept_together_or_dispersed(corpus):
  groups = np.arange(corpus.vocabulary.size) % EXPERTS
  centres = 10 * np.eye(EXPERTS, 8)
  embeddings = centres[groups] + 0.01 * np.random.default_rng(0).normal(size=(len(groups), 8))
  trained = baseline(corpus, embeddings.astype(np.float32))
  (clustered,) = make_table("clustered", corpus, EXPERTS, baseline=trained).buckets
  assert all(len(set(clustered[groups == group].tolist())) == 1 for group in range(EXPERTS))
  assert len(set(clustered.tolist())) == EXPERTS
  (dispersed,) = make_table("dispersed", corpus, EXPERTS, baseline=trained).buckets
  shared = [np.bincount(dispersed[groups == group], minlength=EXPERTS) for group in range(EXPERTS)]
  assert np.ptp(shared, axis=1).max() <= 1


def test_tokens_that_predict_the_same_go_to_the_same_expert(corpus):
  (table,) = make_table("predicted_future", corpus, EXPERTS).buckets
  successor = likeliest_successor(corpus.pairs, corpus.counts, corpus.vocabulary.size)
  assert len(set(successor.tolist())) > EXPERTS
  assert all(len(set(table[successor == one].tolist())) == 1 for one in set(successor.tolist()))


def test_a_baseline_of_another_vocabulary_and_hashes_that_do_not_divide_the_experts_are_refused(corpus):
  with pytest.raises(ConfigError, match="expected the checkpoint's vocabulary"):
    make_table("clustered", corpus, EXPERTS, baseline=baseline(corpus, np.zeros((300, 8)), fingerprint="other"))
  with pytest.raises(ConfigError, match="hashes = 3: expected a divisor of the 4 experts"):
    make_table("balanced", corpus, EXPERTS, hashes=3)
