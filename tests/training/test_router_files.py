"""Tables and centroids are made from a corpus and a trained baseline, and used by a run and its checkpoint."""

import importlib.util
import itertools
import pathlib
import re

import jax
import numpy as np
import optax
import pytest

from moe.config import ConfigError, as_mapping
from moe.data import make_source, make_vocabulary
from moe.evaluation.restore import restore
from moe.parallel.mesh import make_mesh
from moe.routing.solvers.hash_tables import HashTable
from moe.routing.solvers.hashing import hash_buckets
from moe.training.checkpoint import Checkpoints
from moe.training.experiment import load_config
from moe.training.feed import describe
from moe.training.state import abstract_model, abstract_state, keys, make_init, stored_router_state
from moe.training.trainer import train
from moe.training.workdir import Workdir, WorkdirError
from tests.training.tiny import tiny_mapping, tiny_stack

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
EXPERTS, BYTES = 4, 259


def script(name: str, *arguments) -> None:
  spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.main([str(argument) for argument in arguments])


def table(function: str, out, *arguments) -> HashTable:
  script("build_hash_table", "--function", function, "--experts", EXPERTS, "--out", out, *arguments)
  return HashTable.read(str(out))


def config(corpus, steps=1, **model):
  mapping = tiny_mapping(corpus, steps=steps, eval_batches=1, checkpoint_every=1)
  mapping["optimizer"]["schedule"]["warmup_steps"] = 1
  mapping["model"] |= model
  if mapping["model"]["name"] == "decoder":
    del mapping["model"]["encoder"]
  return load_config(mapping)


def first_state(settings):
  """The state of a run at step 0."""
  stored = stored_router_state(settings.model, "")
  make = settings.model.make
  mesh = make_mesh()
  abstract = abstract_state(abstract_model(make, mesh), optax.identity(), mesh)
  return make_init(make, optax.identity(), abstract, stored)(keys(0)[0])


@pytest.fixture(scope="module")
def of_text(corpus):
  fields = {"source": "text", "source.path": corpus, "source.validation_fraction": 0.2, "extra_ids": 0}
  return [argument for name, value in fields.items() for argument in ("--data", f"{name}={value}")]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, corpus):
  """The workdir of a run with MoE layers in both stacks, two of them in the decoder; not trained, which saves time."""
  settings = config(corpus, decoder=tiny_stack({"name": "hash"}, layers=4))
  workdir = Workdir(tmp_path_factory.mktemp("baseline") / "run")
  workdir.claim(settings)
  checkpoints = Checkpoints(workdir.checkpoints)
  about = {"config": as_mapping(settings), "vocabulary": describe(make_vocabulary(settings.data))}
  checkpoints.save(first_state(settings), {}, about, 1.0)
  checkpoints.close()
  return workdir.root


def documents(corpus) -> list[list[int]]:
  data = config(corpus).data
  source = make_source(data, "train", make_vocabulary(data))
  blocks = [block.targets for shard in range(source.num_shards) for block in source.blocks(shard, 0, 0)]
  return [block[i].tolist() for block in blocks for i in range(len(block))]


def test_a_balanced_table_evens_out_what_a_decoder_reads(tmp_path, corpus, of_text, capsys):
  made = table("balanced", tmp_path / "t.npz", *of_text, "--hashes", 2)
  assert made.buckets.shape == (2, BYTES) and made.buckets.dtype == np.int32
  assert made.vocabulary == make_vocabulary(config(corpus).data).fingerprint
  read = np.concatenate([[0, *document[:-1]] for document in documents(corpus)])
  printed = capsys.readouterr().out
  for number, buckets in enumerate(made.buckets):
    share = np.bincount(buckets[read], minlength=2).max() / len(read)
    assert share < 0.51
    assert f"hash {number}: the fullest of 2 experts takes {share:.2%} of the tokens (50.00% if even)" in printed
  values, counts = np.unique(read, return_counts=True)
  assert f"most frequent token's: id {values[counts.argmax()]}, {counts.max() / len(read):.2%}" in printed


def test_the_predicted_future_is_the_byte_that_follows_most_often(tmp_path, corpus, of_text):
  made = table("predicted_future", tmp_path / "t.npz", *of_text)
  texts = [bytes(i - 3 for i in document) for document in documents(corpus)]
  following = [np.bincount([b for t in texts for a, b in itertools.pairwise(t) if a == byte]) for byte in b"mad"]
  expected = hash_buckets((np.array([counts.argmax() + 3 for counts in following]),), EXPERTS, 1, 0)
  np.testing.assert_array_equal(made.buckets[:, [byte + 3 for byte in b"mad"]], expected)


def test_a_text_and_its_tokens_give_the_same_table(tmp_path, of_text):
  script("tokenize_corpus", *of_text, "--out", tmp_path / "tokens")
  of_tokens = ["--data", "source=tokens", "--data", f"source.path={tmp_path / 'tokens'}"]
  one, other = (table("balanced", tmp_path / f"{len(s)}.npz", *s) for s in (of_text, of_tokens))
  np.testing.assert_array_equal(one.buckets, other.buckets)
  assert one.vocabulary == other.vocabulary


def test_a_run_starts_from_its_files_and_its_checkpoint_no_longer_needs_them(tmp_path, corpus, baseline):
  dispersed = table("dispersed", tmp_path / "dispersed.npz", "--workdir", baseline)
  clustered = table("clustered", tmp_path / "clustered.npz", "--workdir", baseline)
  for cluster in range(EXPERTS):
    counts = np.bincount(dispersed.buckets[0, clustered.buckets[0] == cluster], minlength=EXPERTS)
    assert np.ptp(counts) <= 1
  router = {"name": "hash", "function": "dispersed", "table": str(tmp_path / "dispersed.npz")}
  model = {"name": "decoder", "decoder": tiny_stack(router)}
  train(config(corpus, **model), tmp_path / "run")
  for file in tmp_path.glob("*.npz"):
    file.unlink()
  train(config(corpus, steps=2, **model), tmp_path / "run")
  (state,) = jax.tree.leaves(restore(tmp_path / "run", "2").router_state)
  np.testing.assert_array_equal(state, [dispersed.buckets])
  with pytest.raises(
    ConfigError,
    match=r"model\.decoder\.moe\.router\.table = .*: expected a file made by scripts/build_hash_table.py, found none",
  ):
    train(config(corpus, **model), tmp_path / "another")
  assert not (tmp_path / "another").exists()


def test_each_layer_can_have_centroids_of_its_own_but_not_more_than_there_are_layers(
  tmp_path, corpus, baseline, capsys
):
  path = tmp_path / "centroids.npz"
  script("build_centroids", "--workdir", baseline, "--stack", "decoder", "--experts", EXPERTS, "--out", path)
  assert re.search(r"layer 1: \d+ tokens; \d+\.\d% of their variance is within clusters", capsys.readouterr().out)
  centroids = np.load(path)["centroids"]
  assert centroids.shape == (2, EXPERTS, 16) and (centroids[0] != centroids[1]).any()
  router = {"name": "k_means", "centroids": str(path)}
  state = first_state(config(corpus, decoder=tiny_stack(router, layers=4))).router_state
  leaves = {path[-1].key: leaf for path, leaf in jax.tree.leaves_with_path(state)}
  np.testing.assert_array_equal(leaves["centroids"], centroids)
  np.testing.assert_array_equal(leaves["begun"], 1)
  message = r"model\.decoder\.moe\.router\.centroids = \(2, 4, 16\): expected the shape \(4, 16\), or \(3, 4, 16\) with"
  with pytest.raises(ConfigError, match=message):
    stored_router_state(config(corpus, decoder=tiny_stack(router, layers=6)).model, "")


def test_errors_of_the_scripts_are_one_line_and_nothing_is_overwritten(tmp_path, of_text, baseline):
  out = tmp_path / "t.npz"
  with pytest.raises(ConfigError, match=r"^--hashes = 3: expected a divisor of --experts = 4"):
    table("balanced", out, *of_text, "--hashes", 3)
  with pytest.raises(ConfigError, match=r"^config\.data\.vocabulary = 'bytes': .*checkpoint"):
    table("clustered", out, *of_text, "--data", "extra_ids=1", "--workdir", baseline)
  with pytest.raises(WorkdirError, match=r"nowhere holds no run"):
    script("build_centroids", "--workdir", tmp_path / "nowhere", "--stack", "encoder", "--experts", 4, "--out", out)
  assert not out.exists()
  out.write_text("mine")
  for make in (
    lambda: table("balanced", out, *of_text),
    lambda: script("build_centroids", "--workdir", baseline, "--stack", "encoder", "--experts", 4, "--out", out),
  ):
    with pytest.raises(ConfigError, match=r"^--out = '.*t\.npz': expected a path that does not exist"):
      make()
  assert out.read_text() == "mine"


@pytest.mark.parametrize(
  "arguments", [["--function", "clustered", "--data", "source=text"], ["--function", "balanced"]]
)
def test_the_options_of_a_function_belong_to_it(tmp_path, arguments, capsys):
  with pytest.raises(SystemExit):
    script("build_hash_table", *arguments, "--experts", 4, "--out", tmp_path / "t.npz")
  assert re.search(
    "--workdir is for --function clustered and dispersed|give --config or --data", capsys.readouterr().err
  )
