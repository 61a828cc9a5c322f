"""Hash layers: what is hashed, that it is a hash, and that only the oracle knows the future."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.config import ConfigError, build
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.experts.layer import MoE
from moe.models.placement import EveryNth
from moe.routing import Groups, RouterConfig, RouterInput, Site
from moe.routing.methods.hash_layers import HashConfig, HashLayers, next_ids, previous_ids, sections_chosen
from moe.routing.solvers.hashing import hash_buckets
from tests.models.tiny import config as tiny_config
from tests.models.tiny import stack
from tests.routing.naive import token_weights

EXPERTS, VOCABULARY, BATCH, LENGTH = 8, 61, 3, 18
IDS = jax.random.randint(jax.random.key(0), (BATCH, LENGTH), 2, VOCABULARY)
# Two segments and padding in every row.
POSITIONS = jnp.tile(jnp.array([*range(7), *range(8), 0, 0, 0]), (BATCH, 1))
MASK = jnp.tile(jnp.arange(LENGTH) < 15, (BATCH, 1))
COMPUTED = ["random", "bigram", "previous", "position", "future", "modulo"]


def plain_hash(keys, number: int, buckets: int, seed: int) -> int:
  """The documented hash in unbounded integers."""

  def mix(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)

  state = mix(seed)
  for key in (number, *keys):
    state = mix((state * 0x9E3779B1 + key) % 2**32)
  return state % buckets


def plain_keys(function: str, segment: list[int], t: int) -> tuple[int, ...]:
  """What `function` hashes of the t-th token of a segment."""
  before, after = (segment[t - 1] if t else 0), (segment[t + 1] if t + 1 < len(segment) else 0)
  return {
    "random": (segment[t],),
    "bigram": (before, segment[t]),
    "previous": (before,),
    "position": (t,),
    "future": (after,),
  }[function]


def make(**options) -> HashLayers:
  config = build(RouterConfig, {"name": "hash", **options})
  return config.make(Site(8, EXPERTS, VOCABULARY), nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def _output(graph, state, ids, positions, *, training: bool):
  inputs = RouterInput(jnp.zeros((*ids.shape, 8)), MASK, ids, positions)
  return nnx.merge(graph, state)(inputs, training=training)


def output_of(router, ids, positions=POSITIONS, *, training=False):
  return _output(*nnx.split(router), ids, positions, training=training)


def route(router, ids, **others):
  """`[B, T, E]`, the weight with which an expert sees a token, NaN where it does not."""
  return token_weights(output_of(router, ids, **others).routing, ids.shape[1], EXPERTS)


def experts(router, ids, **others) -> np.ndarray:
  """Bool `[B, T, E]`."""
  return ~np.isnan(route(router, ids, **others))


@pytest.mark.parametrize("function", [name for name in COMPUTED if name != "modulo"])
def test_a_token_goes_where_the_hash_of_its_context_within_the_segment_says(function):
  chosen = experts(make(function=function, hashes=2, seed=5), IDS)
  for row in range(BATCH):
    for start, end in ((0, 7), (7, 15)):
      segment = IDS[row, start:end].tolist()
      for t in range(end - start):
        keys = plain_keys(function, segment, t)
        expected = {4 * number + plain_hash(keys, number, 4, 5) for number in range(2)}
        assert set(np.flatnonzero(chosen[row, start + t])) == expected
  assert not chosen[~np.asarray(MASK)].any()


def test_modulo_is_the_remainder_of_the_id():
  np.testing.assert_array_equal(experts(make(function="modulo"), IDS).argmax(-1)[:, :15], (IDS % EXPERTS)[:, :15])


def test_neighbours_end_with_their_segment_and_with_the_row():
  ids, positions = jnp.array([[5, 6, 7, 8]]), jnp.array([[3, 0, 1, 2]])
  np.testing.assert_array_equal(previous_ids(ids, positions), [[0, 0, 6, 7]])
  np.testing.assert_array_equal(next_ids(ids, positions), [[0, 7, 8, 0]])


def test_numpy_and_compiled_jax_give_the_same_buckets():
  ids = np.arange(100_000, dtype=np.int32)
  plain = hash_buckets((ids, ids[::-1]), 13, 3, 2**32 - 1)
  compiled = jax.jit(lambda a, b: hash_buckets((a, b), 13, 3, 2**32 - 1))(ids, ids[::-1])
  np.testing.assert_array_equal(plain, compiled)
  assert compiled.dtype == jnp.int32


def test_buckets_are_even_and_hashes_independent_of_each_other_and_of_the_seed():
  """Chi-squared of the joint counts of three hashes, each pair of which has 64 cells; its mean is 63, its std 11."""
  ids = np.arange(32_000)
  first, second = hash_buckets((ids,), 8, 2, 0)
  (other,) = hash_buckets((ids,), 8, 1, 1)
  for a, b in ((first, second), (first, other), (first, ids % 8)):
    counts = np.bincount(a * 8 + b, minlength=64)
    assert np.square(counts - 500).sum() / 500 < 63 + 4 * 11


def test_multihash_takes_one_expert_of_each_section():
  chosen = experts(make(hashes=4), IDS).reshape(BATCH, LENGTH, 4, 2)
  np.testing.assert_array_equal(chosen.sum(-1), np.broadcast_to(np.asarray(MASK)[..., None], (BATCH, LENGTH, 4)))
  assert len(np.unique(chosen[np.asarray(MASK)].reshape(-1, 8), axis=0)) > 8  # more combinations than experts


def test_sections_follow_each_other():
  np.testing.assert_array_equal(sections_chosen(jnp.array([[2], [0]]), 3), [[0, 0, 1, 1, 0, 0]])


def test_a_multihash_layer_is_one_network_of_the_segments_that_the_hashes_choose():
  """Wide-network form: the chosen experts' hidden units side by side."""
  layer = MoE(6, 4, 5, {"name": "hash", "hashes": 2}, form="relu", vocab_size=VOCABULARY, rngs=nnx.Rngs(1))
  x, ids = jax.random.normal(jax.random.key(1), (1, 9, 6)), IDS[:1, :9]
  positions = jnp.arange(9)[None]
  segments = jnp.ones((1, 9), jnp.int32)
  y = jax.jit(lambda x: layer(x, segments=segments, ids=ids, positions=positions, training=True)[0])(x)
  buckets = hash_buckets((np.asarray(ids[0]),), 2, 2, 0)
  up, down = np.asarray(layer.experts.up[...]), np.asarray(layer.experts.down[...])
  for t in range(9):
    chosen = [buckets[0, t], 2 + buckets[1, t]]
    wide_up, wide_down = (np.concatenate(weights[chosen], axis=1) for weights in (up, down))
    expected = np.maximum(np.asarray(x[0, t]) @ wide_up, 0) @ wide_down.T
    np.testing.assert_allclose(y[0, t], expected, rtol=1e-4, atol=1e-5)


def test_it_has_no_parameters_no_loss_and_weight_one():
  router = make()
  assert not jax.tree.leaves(nnx.state(router))
  output = output_of(router, IDS, training=True)
  assert output.losses == {} and float(output.auxiliary_loss) == 0
  weights = route(router, IDS)
  assert set(weights[~np.isnan(weights)]) == {1.0}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("function", COMPUTED)
def test_only_the_oracle_sees_the_future_and_none_sees_other_sequences(function, training):
  router = make(function=function)
  weights = lambda ids: jnp.asarray(np.nan_to_num(route(router, ids, training=training)))  # noqa: E731
  assert router.config.is_causal(training=training) == (function != "future")
  # Changing everything after position 9 is seen at 9 itself by the oracle, and at no other position.
  leak = future_leak(weights, IDS, 9, jax.random.key(1))
  assert (leak > 0) == (function == "future")
  assert router.config.is_batch_independent(LENGTH, training=training)
  assert company_leak(weights, IDS, jax.random.key(2)) == 0


@pytest.mark.parametrize("options", [{"function": "bigram", "hashes": 2}, {"function": "previous"}])
@pytest.mark.parametrize("factor", [None, 2.0])
def test_decoding_remembers_the_id_before(options, factor):
  router = make(capacity_factor=factor, **options)
  positions = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
  whole = route(router, IDS, positions=positions)
  step, state = jax.jit(router.decode), router.init_decode_state(BATCH, LENGTH)
  for t in range(LENGTH):
    inputs = RouterInput(jnp.zeros((1, BATCH, 8)), MASK[None, :, t], IDS[None, :, t], positions[None, :, t])
    output, state = step(inputs, state)
    np.testing.assert_array_equal(token_weights(output.routing, BATCH, EXPERTS)[0], whole[:, t])


def test_the_oracle_does_not_decode():
  with pytest.raises(NotImplementedError, match="later tokens"):
    make(function="future").decode(None, {})


def final_loss(function: str) -> float:
  """Mean loss of the last steps on tokens drawn at random, of which no causal model can know anything."""
  router = HashConfig(function=function, seed=7)
  config = tiny_config("decoder", stack(router, 1, num_experts=8, placement=EveryNth(1)), allow_future_leakage=True)
  graph, params = nnx.split(config.make(nnx.Rngs(0)))
  optimizer = optax.adam(0.02)

  def step(carry, key):
    params, moments = carry
    targets = jax.random.randint(key, (8, 12), 2, 6)
    position = jnp.broadcast_to(jnp.arange(12), targets.shape)
    batch = {"targets": targets, "targets_positions": position, "targets_segments": jnp.ones_like(targets)}

    def loss(params):
      logits = nnx.merge(graph, params)(batch, training=True).logits[:, :-1]  # the last has no next input
      return optax.softmax_cross_entropy_with_integer_labels(logits, targets[:, :-1]).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(gradient, moments)
    return (optax.apply_updates(params, updates), moments), value

  keys = jax.random.split(jax.random.key(0), 120)
  return float(jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[1])(params)[-10:].mean())


def test_the_oracle_collapses_the_loss_of_a_language_model_and_a_causal_hash_cannot():
  """The positive control of the leak tests: four tokens drawn evenly cost ln 4 nats, whatever the context."""
  assert len({plain_hash((token,), 0, 8, 7) for token in range(2, 6)}) == 4  # the four have experts of their own
  assert final_loss("future") < 0.1
  assert final_loss("random") > 0.95 * np.log(4)


def test_a_table_is_obeyed_and_an_empty_one_sends_tokens_nowhere():
  router = make(function="balanced", table="t.npz", hashes=2)
  assert not experts(router, IDS).any()
  table = np.random.default_rng(0).integers(0, 4, (2, VOCABULARY))
  router.table[...] = jnp.asarray(table, jnp.int32)
  chosen = experts(router, IDS)[np.asarray(MASK)]
  ids = np.asarray(IDS)[np.asarray(MASK)]
  for m in range(2):
    np.testing.assert_array_equal(chosen[:, 4 * m : 4 * m + 4].argmax(-1), table[m, ids])


@pytest.mark.parametrize("shape", [(VOCABULARY,), (2, VOCABULARY)])
def test_a_table_of_one_s_own_is_obeyed(shape, tmp_path):
  hashes, path = len(shape), str(tmp_path / "own.npz")
  table = np.random.default_rng(0).integers(0, EXPERTS // hashes, shape)
  np.savez(path, buckets=table)
  layer = MoE(
    8,
    EXPERTS,
    4,
    {"name": "hash", "function": "table", "table": path, "hashes": hashes},
    vocab_size=VOCABULARY,
    rngs=nnx.Rngs(0),
  )
  expected = np.zeros((BATCH, LENGTH, EXPERTS), bool)
  for m, row in enumerate(np.atleast_2d(table)):
    expected |= np.eye(EXPERTS, dtype=bool)[m * (EXPERTS // hashes) + row[np.asarray(IDS)]]
  np.testing.assert_array_equal(experts(layer.router, IDS)[np.asarray(MASK)], expected[np.asarray(MASK)])


@pytest.mark.parametrize(
  ("table", "message"),
  [
    (
      np.zeros(VOCABULARY - 1, int),
      r"expected integers \[61\], one for each token id, or \[1, 61\], found int64 \[1, 60\]",
    ),
    (np.zeros(VOCABULARY + 1, int), r"expected integers \[61\], .* found int64 \[1, 62\]"),
    (np.zeros(VOCABULARY), r"found float64 \[1, 61\]"),
    (np.full(VOCABULARY, EXPERTS), "expected entries from 0 to 7, found 8 to 8"),
    (np.full(VOCABULARY, -1), "expected entries from 0 to 7, found -1 to -1"),
    (None, "expected a file made by numpy.savez.*, found none"),
  ],
)
def test_a_table_of_one_s_own_that_does_not_fit_is_refused(table, message, tmp_path):
  path = tmp_path / "own.npz"
  if table is not None:
    np.savez(path, buckets=table)
  with pytest.raises(ConfigError, match=message):
    HashConfig(function="table", table=str(path)).stored(Site(8, EXPERTS, VOCABULARY), None)


@pytest.mark.parametrize("function", COMPUTED)
def test_ids_beyond_the_vocabulary_are_an_error_or_in_a_compiled_program_go_nowhere(function):
  router, ids = make(function=function), IDS.at[0, 3].set(VOCABULARY).at[1, 4].set(-1)
  inputs = RouterInput(jnp.zeros((BATCH, LENGTH, 8)), MASK, ids, POSITIONS)
  with pytest.raises(ConfigError, match=r"ids = \[61\]: expected token ids from 0 to 60"):
    router(inputs, training=False)
  chosen = ~np.isnan(token_weights(jax.jit(lambda: router(inputs, training=False).routing)(), LENGTH, EXPERTS))
  nowhere = np.argwhere(np.asarray(MASK) & ~chosen.any(-1))
  np.testing.assert_array_equal(nowhere, [[0, 3], [1, 4]])
  router(RouterInput(inputs.tokens, MASK, IDS.at[0, -1].set(VOCABULARY), POSITIONS), training=False)  # padding is free


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"function": "table"}, r"config\.table = '': expected a file with buckets for function = 'table'"),
    (
      {"function": "balanced"},
      r"config\.table = '': expected a file made by scripts/build_hash_table.py for function = 'balanced'",
    ),
    ({"function": "bigram", "table": "x"}, r"config\.table = 'x': expected none for function = 'bigram'"),
    ({"hashes": 0}, r"config\.hashes = 0: expected at least 1"),
    ({"function": "modulo", "hashes": 2}, r"config\.hashes = 2: expected 1, since function = \"modulo\""),
    ({"seed": 2**32}, r"config\.seed = 4294967296: expected a whole number of at most 32 bits"),
    ({"function": "sha"}, r"config\.function = 'sha': expected one of 'random'"),
  ],
)
def test_options_that_make_no_sense_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    build(RouterConfig, {"name": "hash", **options})


def test_it_needs_token_ids_and_equal_sections_and_no_file_to_be_checked():
  with pytest.raises(ConfigError, match=r"^function = 'random': hashes token ids: expected a layer with a vocab_size"):
    HashConfig().check(Site(8, EXPERTS), BATCH, LENGTH)
  with pytest.raises(ConfigError, match=r"hashes = 3: expected a divisor of the 8 experts"):
    HashConfig(hashes=3).check(Site(8, EXPERTS, VOCABULARY), BATCH, LENGTH)
  HashConfig(function="balanced", table="nowhere").check(Site(8, EXPERTS, VOCABULARY), BATCH, LENGTH)
  assert HashConfig().groups(BATCH, LENGTH) == Groups(LENGTH)
