"""The layer in any model: ten lines, checked when it is made and when it is called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from moe.config import ConfigError, build
from moe.experts import MoE
from moe.routing import RouterConfig
from moe.routing.solvers.hash_tables import HashTable

BATCH, LENGTH, WIDTH, EXPERTS, VOCABULARY = 2, 12, 8, 4, 30
X = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
IDS = jax.random.randint(jax.random.key(2), (BATCH, LENGTH), 0, VOCABULARY)


@functools.partial(nnx.jit, static_argnames="training")
def call(moe, x=X, **given):
  """Output and report, compiled, which is faster here."""
  return moe(x, **given)


def layer(router="switch", *, d_model=WIDTH, num_experts=EXPERTS, d_ff=16, **more) -> MoE:
  return MoE(d_model, num_experts, d_ff, router, rngs=nnx.Rngs(0), **more)


def test_ten_lines_are_enough():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.moe = MoE(8, 4, 16, {"name": "switch", "capacity_factor": 1.5}, rngs=rngs)
      self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, key):
      y, report = self.moe(x, training=True, key=key)
      return self.out(x + y), report.auxiliary_loss

  model = Model(nnx.Rngs(0))
  loss = lambda model: jnp.add(*(part.mean() for part in model(X, jax.random.key(3))))  # noqa: E731
  gradients = nnx.jit(nnx.grad(loss))(model)
  for path, gradient in nnx.to_flat_state(gradients["moe"]):
    assert (gradient[...] != 0).any(), path


def assert_same(found, expected):
  """Who goes where exactly, numbers to rounding."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
  whole = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.int32]  # noqa: E731
  jax.tree.map(np.testing.assert_array_equal, whole(found), whole(expected))


SEGMENTS = jnp.ones((BATCH, LENGTH), jnp.int32)
POSITIONS = jnp.tile(jnp.arange(LENGTH), (BATCH, 1))


@pytest.mark.parametrize(
  ("router", "more"),
  [
    ("switch", {}),
    ("expert_choice", {}),
    ("dropless", {}),
    ("soft_moe", {}),
    ("prefix_rank", {}),
    ({"name": "hash", "function": "bigram"}, {"vocab_size": VOCABULARY}),
    ({"name": "hash", "function": "position"}, {"vocab_size": VOCABULARY}),
  ],
)
def test_without_segments_a_row_is_one_sequence(router, more):
  moe = layer(router, **more)
  ids = IDS if more else None
  found, expected = call(moe, ids=ids), call(moe, ids=ids, segments=SEGMENTS, positions=POSITIONS, training=False)
  assert_same(found, expected)


def test_without_positions_they_are_counted_within_the_segments():
  moe = layer({"name": "hash", "function": "position"}, vocab_size=VOCABULARY)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 1 + [2] * 11])
  positions = jnp.array([[*range(5), *range(4), *range(3)], [0, *range(11)]])
  found, expected = (call(moe, ids=IDS, segments=segments, **more) for more in ({}, {"positions": positions}))
  assert_same(found, expected)
  other = call(moe, ids=IDS, segments=segments, positions=POSITIONS)
  assert (found[0] != other[0]).any()  # positions do matter


def test_a_router_is_given_by_its_name_its_mapping_or_its_config():
  named, mapped = layer("glam"), layer({"name": "glam"})
  configured = layer(build(RouterConfig, {"name": "glam"}))
  from_file = layer(ConfigDict({"name": "glam"}))
  assert named.config == mapped.config == configured.config == from_file.config
  assert named.router.config is named.config
  for other in (mapped, configured, from_file):
    assert_same(call(other), call(named))


def test_arrays_may_be_numpys():
  moe = layer("switch")
  assert_same(moe(np.asarray(X), segments=np.asarray(SEGMENTS)), moe(X, segments=SEGMENTS))


@pytest.mark.parametrize(
  ("arguments", "field", "expected"),
  [
    ({"router": {"name": "glam", "top_k": 5}}, "top_k = 5", "expected at most the 4 experts there are"),
    ({"router": {"name": "switch", "top_k": 5}}, "top_k = 5", "expected at most the 4 experts there are"),
    ({"router": {"name": "hash", "hashes": 3}, "vocab_size": 9}, "hashes = 3", "expected a divisor of the 4 experts"),
    (
      {"router": {"name": "hash", "function": "balanced"}},
      "table = ''",
      "expected a file made by scripts/build_hash_table.py for",
    ),
    ({"router": "hash"}, "router.function = 'random'", "expected a layer with a vocab_size, as text models have"),
    ({"form": "tanh"}, "form = 'tanh'", "expected one of gelu, gelu_exact, relu, geglu, geglu_exact, swiglu"),
    ({"router": "swich"}, "router.name = 'swich'", "expected one of adaptive_mixture, "),
    ({"router": {"name": "switch", "top": 2}}, "router.top = 2", "unknown field; SwitchConfig has "),
    ({"router": {"capacity_factor": 2.0}}, "router.name = None", "expected one of "),
    ({"num_experts": 0}, "num_experts = 0", "expected a whole number, at least 1"),
    ({"d_model": 0}, "d_model = 0", "expected a whole number, at least 1"),
    ({"d_ff": -16}, "d_ff = -16", "expected a whole number, at least 1"),
    ({"d_ff": 16.0}, "d_ff = 16.0", "expected a whole number, at least 1"),
    ({"shared_experts": -1}, "shared_experts = -1", "expected at least 0"),
    (
      {"router": {"name": "expert_choice", "capacity_factor": 9.0}, "num_experts": 8},
      "router.capacity_factor = 9.0",
      "expected at most the 8 experts there are",
    ),
    (
      {"router": {"name": "hash", "function": "balanced", "table": "none.npz"}, "vocab_size": 9},
      "table",
      "expected a file made by scripts/build_hash_table.py, found none",
    ),
  ],
)
def test_a_wrong_construction_is_one_line_that_names_the_field(arguments, field, expected):
  with pytest.raises(ConfigError) as caught:
    layer(**arguments)
  message = str(caught.value)
  assert field in message and expected in message, message
  assert "\n" not in message


@pytest.mark.parametrize(
  ("router", "x", "inputs", "message"),
  [
    ("switch", X[..., :-1], {}, r"x = \[2, 12, 7\]: expected \[B, T, 8\]"),
    ("switch", X[0], {}, r"x = \[12, 8\]: expected \[B, T, 8\]"),
    ("switch", X[None], {}, r"x = \[1, 2, 12, 8\]: expected \[B, T, 8\]"),
    ("switch", X[:0], {}, r"x = \[0, 12, 8\]: expected \[B, T, 8\]"),
    ("switch", X, {"segments": SEGMENTS.T}, r"segments = \[12, 2\]: expected \[2, 12\]"),
    ("switch", X, {"segments": SEGMENTS[0]}, r"segments = \[12\]: expected \[2, 12\]"),
    ("position_grouped", X, {"positions": POSITIONS.T}, r"positions = \[12, 2\]: expected \[2, 12\]"),
    ("hash", X, {"ids": IDS[:1]}, r"ids = \[1, 12\]: expected \[2, 12\]"),
    ("hash", X, {}, r"ids = None: expected int32 \[B, T\], which the router hash reads"),
  ],
)
def test_a_wrong_call_is_one_line(router, x, inputs, message):
  moe = layer(router, vocab_size=VOCABULARY)
  with pytest.raises(ValueError, match=message) as caught:
    moe(x, **inputs)
  assert "\n" not in str(caught.value)


def decoded(moe, **given):
  """Outputs of the rows' tokens one by one; those of `given` that are arrays `[B, T]` a column each."""
  state, outputs = moe.init_decode_state(BATCH, LENGTH), []
  step = jax.jit(lambda x, state, given: moe.decode(x, state, **given))
  for t in range(LENGTH):
    y, state = step(X[:, t : t + 1], state, {name: array[:, t : t + 1] for name, array in given.items()})
    outputs.append(y)
  return jnp.concatenate(outputs, 1)


@pytest.mark.parametrize("function", ["random", "modulo", "bigram", "previous"])
def test_a_hash_decodes_without_positions_as_a_row_of_one_sequence(function):
  moe = layer({"name": "hash", "function": function}, vocab_size=VOCABULARY)
  np.testing.assert_allclose(decoded(moe, ids=IDS), call(moe, ids=IDS)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("function", "given", "message"),
  [
    ("random", {"positions": POSITIONS}, "ids = None: expected int32 [B, T], which the router hash reads"),
    ("bigram", {"positions": POSITIONS}, "ids = None: expected int32 [B, T], which the router hash reads"),
    ("position", {"ids": IDS}, "positions = None: expected int32 [B, T], which function = 'position' reads"),
  ],
)
def test_decoding_without_what_a_hash_reads_is_one_line(function, given, message):
  moe = layer({"name": "hash", "function": function}, vocab_size=VOCABULARY)
  with pytest.raises(ValueError) as caught:
    decoded(moe, **given)
  assert str(caught.value) == message


def test_a_call_with_a_batch_that_the_router_cannot_divide_is_refused():
  moe = layer({"name": "expert_choice", "group_size": 5})
  with pytest.raises(ConfigError, match=r"group_size = 5: expected a divisor of 2 x 12 = 24 tokens, such as 4"):
    moe(X, training=True)
  assert moe(X)[0].shape == X.shape  # in evaluation groups take the size that fits


@pytest.fixture
def table(tmp_path) -> tuple[str, np.ndarray]:
  """The path of a hash table of this vocabulary, and its experts."""
  experts = np.random.default_rng(0).integers(0, EXPERTS, (1, VOCABULARY)).astype(np.int32)
  path = str(tmp_path / "table.npz")
  HashTable(experts, EXPERTS, "a vocabulary", "balanced", "a corpus").write(path)
  return path, experts


def balanced(path: str) -> dict:
  return {"name": "hash", "function": "balanced", "table": path}


def test_a_hash_table_is_read_when_the_layer_is_made_and_obeyed(table):
  path, experts = table
  moe = layer(balanced(path), vocab_size=VOCABULARY)
  np.testing.assert_array_equal(moe.router.table[...], experts)
  routing = call(moe, ids=IDS)[1].routing
  for b in range(BATCH):
    found = np.repeat(np.arange(EXPERTS), routing.group_sizes[b])
    np.testing.assert_array_equal(found, experts[0, IDS[b]][routing.token[b, : len(found)]])


def test_files_are_not_read_where_training_will_read_them(table):
  moe = layer(balanced(table[0]), vocab_size=VOCABULARY, read_files=False)
  assert (moe.router.table[...] == -1).all()
  layer(balanced("nowhere.npz"), vocab_size=VOCABULARY, read_files=False)


def test_a_table_for_other_experts_is_refused(table):
  with pytest.raises(ConfigError, match=r"table = .*table\.npz'"):
    layer(balanced(table[0]), num_experts=8, vocab_size=VOCABULARY)
