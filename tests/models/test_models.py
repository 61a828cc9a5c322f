"""What every model does with any router."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.evaluation.leak_meters import future_leak
from moe.models import shift_right
from moe.models.embedding import TokenEmbedding
from moe.models.placement import EveryNth
from tests.models.test_stack import blocks_of, context
from tests.models.tiny import (
  ARCHITECTURES,
  CAUSAL,
  DROPLESS,
  EXPERT_CHOICE,
  TIGHT_SWITCH,
  batch,
  config,
  logits,
  model,
  output,
  packed,
  stack,
)


def test_shift_right_begins_each_segment_with_zero():
  tokens = jnp.array([[5, 6, 7, 8, 9, 0], [3, 4, 0, 0, 0, 0]])
  segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(shift_right(tokens, segments), [[0, 5, 6, 0, 8, 0], [0, 3, 0, 0, 0, 0]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("router", [None, DROPLESS], ids=["dense", "dropless"])
def test_packed_examples_equal_separate_ones(architecture, router):
  network = model(config(architecture, router, router if architecture == "encoder_decoder" else None))
  lengths = {"targets": [3, 4, 2], "inputs": [4, 1, 3]}
  together = packed([lengths["targets"]], [lengths["inputs"]])
  alone = packed([[n] for n in lengths["targets"]], [[n] for n in lengths["inputs"]])
  for side in lengths:
    alone[side] = alone[side].at[alone[f"{side}_segments"] > 0].set(together[side][0])
  found, expected = logits(network, together)[0], logits(network, alone)
  np.testing.assert_allclose(found, expected[alone["targets_segments"] > 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("router", CAUSAL)
def test_later_tokens_change_no_bit_of_earlier_logits(architecture, router):
  network, example = model(config(architecture, CAUSAL[router])), batch(targets=10)
  for position in (0, 5):
    leak = future_leak(
      lambda targets: logits(network, example | {"targets": targets}), example["targets"], position, jax.random.key(0)
    )
    assert leak == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_expert_choice_in_the_decoder_does_leak_when_allowed(architecture):
  network = model(config(architecture, EXPERT_CHOICE, allow_future_leakage=True))
  example = batch(rows=4, targets=16)
  leak = future_leak(
    lambda targets: logits(network, example | {"targets": targets}), example["targets"], 5, jax.random.key(0)
  )
  assert leak > 0


@pytest.mark.parametrize(
  "router", [None, EXPERT_CHOICE, TIGHT_SWITCH, DROPLESS], ids=lambda r: r.name if r else "dense"
)
def test_what_stands_in_padding_changes_no_bit(router):
  network = model(config(encoder=router))
  example = packed([[5], [7]], [[3], [8]])
  padding = example["inputs_segments"] == 0
  changed = example | {"inputs": jnp.where(padding, 7, example["inputs"])}
  np.testing.assert_array_equal(logits(network, example)[0, :5], logits(network, changed)[0, :5])
  np.testing.assert_array_equal(logits(network, example)[1], logits(network, changed)[1])


@pytest.mark.parametrize("router", [None, DROPLESS], ids=["dense", "dropless"])
def test_amount_of_padding_does_not_matter(router):
  network, short = model(config(encoder=router)), batch(inputs=5)
  long = short | {
    name: jnp.pad(short[name], ((0, 0), (0, 4))) for name in ("inputs", "inputs_segments", "inputs_positions")
  }
  np.testing.assert_allclose(logits(network, short), logits(network, long), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits(architecture):
  settings = config(architecture, DROPLESS)
  network = model(dataclasses.replace(settings, dtype="bfloat16"))
  exact, result = logits(model(settings), batch()), output(network, batch())
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))} == {jnp.dtype("float32")}
  assert result.logits.dtype == result.auxiliary_loss.dtype == jnp.float32
  error = jnp.linalg.norm(result.logits - exact) / jnp.linalg.norm(exact)
  assert 1e-4 < error < 0.1


def test_dropout_is_random_in_training_only():
  network = model(config("decoder", stack(layers=1), dropout=0.2))
  graph, variables = nnx.split(network)
  jitted = jax.jit(lambda key: nnx.merge(graph, variables)(batch(), training=True, key=key).logits)

  def train(seed):
    return jitted(jax.random.key(seed))

  np.testing.assert_array_equal(train(0), train(0))
  assert (train(0) != train(1)).any()
  assert (train(0) != logits(network, batch())).any()


def test_experts_may_have_a_dropout_of_their_own():
  """Of routed and of shared experts; without one it is the model's, and a rate of 0 leaves the rest of dropout on."""
  moe = stack(DROPLESS, shared_experts=1)

  def train(**rates):
    graph, variables = nnx.split(model(config("decoder", moe, **rates)))
    run = jax.jit(lambda values, key: nnx.merge(graph, values)(batch(), training=True, key=key).logits)
    return np.asarray(run(variables, jax.random.key(0)))

  np.testing.assert_array_equal(train(dropout=0.2), train(dropout=0.2, expert_dropout=0.2))
  np.testing.assert_array_equal(train(), train(expert_dropout=0.0))
  outputs = [train(dropout=0.2), train(dropout=0.2, expert_dropout=0.0), train(expert_dropout=0.4), train()]
  assert all((one != other).any() for one, other in itertools.combinations(outputs, 2))


def test_shared_output_matrix_is_scaled_and_a_head_of_its_own_is_not():
  tied, untied = config().make(nnx.Rngs(0)), config(tie_embeddings=False).make(nnx.Rngs(0))
  assert tied.embedding.head is None
  graph, _ = nnx.split(untied)
  variables = nnx.state(tied)
  head = nnx.state(untied.embedding)["head"]
  head[...] = tied.embedding.table[...].T
  variables["embedding"]["head"] = head
  same = nnx.merge(graph, variables)
  np.testing.assert_allclose(logits(same, batch()), 4 * logits(tied, batch()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tie", [True, False])
def test_untrained_logits_are_of_order_one(tie):
  spread = logits(model(config(decoder=DROPLESS, d_model=64, tie_embeddings=tie)), batch(targets=16)).std()
  assert 0.3 < spread < 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_receives_a_gradient(architecture):
  encoder = EXPERT_CHOICE if architecture == "encoder_decoder" else None
  graph, params = nnx.split(config(architecture, DROPLESS, encoder).make(nnx.Rngs(0)))

  def loss(params):
    result = nnx.merge(graph, params)(batch(rows=4), training=True)
    return jax.nn.log_softmax(result.logits)[..., 3].sum() + result.auxiliary_loss

  for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
    assert (gradient[...] != 0).any(), path


def test_every_moe_layer_reports_the_size_of_its_branch_against_the_stream():
  settings = config("decoder", stack(EXPERT_CHOICE, layers=1, placement=EveryNth(1)), allow_future_leakage=True)
  network = model(settings)
  block = next(blocks_of(network.decoder))
  stream = jax.random.normal(jax.random.key(0), (2, 5, 16)).at[1, 3:].set(100.0)
  segments = jnp.ones((2, 5), jnp.int32).at[1, 3:].set(0)
  given = dataclasses.replace(context(network.decoder), segments=segments)
  out, reports = block(stream, given, training=False, key=None)
  attended = stream + block.attention(*[block.attention_norm(stream)] * 2, given.mask, block.bias(5))
  real = np.asarray(segments > 0)
  branch, before = np.asarray(out - attended)[real], np.asarray(attended)[real]
  expected = np.sqrt(np.square(branch).sum() / np.square(before).sum())
  np.testing.assert_allclose(reports["moe"].metrics["branch_norm_ratio"], expected, rtol=1e-4)
  assert output(network, batch()).metrics["decoder"]["branch_norm_ratio"].shape == (1,)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_may_be_products_of_float32_factors(tied):
  """Of a width whose root bfloat16 does not hold, so that scaling rounds too."""
  x = jax.random.normal(jax.random.key(0), (2, 3, 24), jnp.bfloat16)
  errors = {}
  for operands in ("compute_dtype", "float32"):
    settings = config("decoder", d_model=24, dtype="bfloat16", tie_embeddings=tied, logits_operands=operands)
    embedding = TokenEmbedding(settings, rngs=nnx.Rngs(0))
    matrix = embedding.table[...].T / np.sqrt(24.0) if tied else embedding.head[...]
    matrix = np.asarray(matrix, np.float64)
    errors[operands] = np.abs(np.asarray(embedding.logits(x), np.float64) - np.asarray(x, np.float64) @ matrix).max()
  assert errors["float32"] < 1e-5 < 1e-3 < errors["compute_dtype"]
