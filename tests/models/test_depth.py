"""Mixture-of-Depths against naive references: who is taken, what a block does to them, what is known of the future."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.evaluation.leak_meters import future_leak
from moe.models.block import Block, Context
from moe.models.depth import DepthBlock, DepthRouter, choice_metrics, highest_in_order
from moe.models.model_config import DepthConfig
from moe.models.placement import EveryNth
from moe.models.stack import Stack
from moe.nn.attention import segment_mask, segment_positions
from tests.models.test_decode import stepwise
from tests.models.test_stack import blocks_of
from tests.models.tiny import TIGHT_SWITCH, batch, config, model, output, router, stack
from tests.slow import slow

D, T = 16, 12
QUARTER = DepthConfig(capacity=0.25)
# Two packed texts and padding; one text; almost only padding.
SEGMENTS = jnp.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * T, [1] * 2 + [0] * (T - 2)])
REAL = SEGMENTS > 0


def decoder(depth, moe_router=None, layers=2, architecture="decoder", moe=None, **changes):
  stacks = stack(moe_router, layers, depth, **(moe or {}))
  return config(architecture, stacks, allow_future_leakage=True, **changes)


def block_of(depth=QUARTER, moe_router=None, **changes) -> DepthBlock:
  settings = decoder(depth, moe_router, **changes)
  return DepthBlock(settings, settings.decoder.moe, depth, causal=True, cross=False, rngs=nnx.Rngs(0))


def context(segments=SEGMENTS, bias=None):
  return Context(
    mask=segment_mask(segments, segments, causal=True),
    ids=jnp.ones_like(segments),
    positions=segment_positions(segments),
    segments=segments,
    bias=bias,
  )


def tokens(seed=1, shape=(3, T, D)):
  return jax.random.normal(jax.random.key(seed), shape)


def taken_of(scores, real, k):
  """The k highest of one row in Python: real tokens first, of equal ones the earlier, as a mask."""
  ranked = sorted(range(len(scores)), key=lambda t: (not real[t], -scores[t], t))
  return np.isin(np.arange(len(scores)), ranked[:k])


@pytest.mark.parametrize("bias", ["own", "shared", "none"])
def test_a_block_does_to_the_highest_of_each_row_what_it_would_if_all_others_were_hidden(bias):
  """Row by row and over the whole row, so that distances are what they are; packed texts do not see each other."""
  block, x = block_of(relative_bias={"own": "per_layer"}.get(bias, "none")), tokens()
  shared = jax.random.normal(jax.random.key(2), (1, 2, T, T)) if bias == "shared" else None
  found, reports = block(x, context(bias=shared), training=True, key=None)
  scores = np.asarray(x, np.float64) @ np.asarray(block.router.kernel[...], np.float64)[:, 0]
  for row in range(3):
    taken = taken_of(scores[row], REAL[row], k=3)
    one = context(SEGMENTS[row : row + 1], shared)
    one = dataclasses.replace(one, mask=one.mask & taken[None, None, None])
    y, _ = Block.__call__(block, x[row : row + 1], one, training=True, key=None)
    expected = np.where(taken[:, None], x[row] + scores[row][:, None] * (y[0] - x[row]), x[row])
    np.testing.assert_allclose(found[row][REAL[row]], expected[REAL[row]], rtol=1e-4, atol=1e-5)
  assert reports.keys() == {"depth"}
  np.testing.assert_allclose(reports["depth"]["depth/taken"], (3 + 3 + 2) / 24)


@pytest.mark.parametrize(("capacity", "k"), [(0.125, 2), (0.25, 3), (0.5, 6), (0.99, 12)])
def test_exactly_k_tokens_of_each_row_change_and_all_others_stay_bit_for_bit(capacity, k):
  block, x = block_of(DepthConfig(capacity=capacity)), tokens()
  full = jnp.ones_like(SEGMENTS)
  found, _ = block(x, context(full), training=True, key=None)
  assert (found != x).any(-1).sum(1).tolist() == [k] * 3


def test_the_share_is_rounded_up_as_it_is_written():
  """0.07 x 100 is 7.000000000000001 in binary."""
  assert [DepthConfig(capacity=share).tokens(length) for share, length in ((0.07, 100), (0.125, 9), (0.1, 1))] == [
    7,
    2,
    1,
  ]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_with_room_for_all_and_weight_1_it_is_the_ordinary_block(dropout):
  block, x = block_of(DepthConfig(capacity=0.99), TIGHT_SWITCH, dropout=dropout), tokens().at[..., 0].set(1.0)
  block.router.kernel[...] = jnp.zeros((D, 1)).at[0].set(1.0)  # every score is 1
  key = jax.random.key(3)
  found, reports = block(x, context(), training=True, key=key)
  expected, ordinary = Block.__call__(block, x, context(), training=True, key=key)
  np.testing.assert_allclose(found[REAL], expected[REAL], rtol=1e-5, atol=1e-5)
  for name, value in ordinary["moe"].metrics.items():
    np.testing.assert_allclose(reports["moe"].metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_blocks_with_and_without_begin_with_the_same_parameters():
  settings = decoder(QUARTER)
  plain = nnx.to_pure_dict(nnx.state(Block(settings, None, causal=True, cross=False, rngs=nnx.Rngs(0))))
  passable = nnx.to_pure_dict(nnx.state(block_of()))
  jax.tree.map(np.testing.assert_array_equal, plain, {name: passable[name] for name in plain})
  assert passable.keys() - plain.keys() == {"router"}


@pytest.mark.parametrize(
  ("scores", "real", "k", "expected"),
  [
    ([5.0, 1.0, 9.0, 3.0], [1, 1, 1, 1], 2, [0, 2]),
    ([5.0, 1.0, 9.0, 3.0], [1, 1, 0, 1], 2, [0, 3]),
    ([-5.0, 1.0, 9.0, 9.0], [1, 1, 0, 0], 2, [0, 1]),  # a low score comes before padding
    ([5.0, 1.0, 9.0, 3.0], [1, 0, 0, 0], 3, [0, 1, 2]),  # padding fills what is left
    ([2.0, 2.0, 2.0, 2.0], [1, 1, 1, 1], 2, [0, 1]),
  ],
)
def test_the_highest_are_in_order_of_position_and_padding_is_last(scores, real, k, expected):
  found = highest_in_order(jnp.array([scores]), jnp.array([real], bool), k)
  assert found.tolist() == [expected]


def test_metrics_are_means_over_real_tokens():
  logits = jnp.array([[0.0, 2.0, -1.0, 50.0]])
  among, real = jnp.array([[True, False, False, True]]), jnp.array([[True, True, True, False]])
  found = choice_metrics(logits, among & real, jnp.array([[True, True, False, False]]), real)
  expected = (math.log(2) + math.log1p(math.exp(2)) + math.log1p(math.exp(-1))) / 3
  assert float(found["depth/loss"]) == pytest.approx(expected, rel=1e-6)
  assert float(found["depth/accuracy"]) == pytest.approx(1 / 3)  # 0 is not above 0
  assert float(found["depth/taken"]) == pytest.approx(2 / 3)


def test_the_predictor_learns_who_is_taken():
  routed = DepthRouter(D, 32, nnx.Rngs(0))
  graph, params = nnx.split(routed)
  x, optimizer = tokens(shape=(16, 32, D)), optax.adam(0.01)

  def report(params):
    scores, logits = nnx.merge(graph, params)(x)
    among = jnp.zeros_like(logits, bool).at[jnp.arange(16)[:, None], highest_in_order(scores, scores > -9, 4)].set(True)
    return choice_metrics(logits, among, among, jnp.ones_like(among))

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(lambda params: report(params)["depth/loss"])(params), state)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, 300)[0][0]

  after = report(train(params))
  assert after["depth/accuracy"] > 0.95 > 0.7 > report(params)["depth/accuracy"]


@functools.cache
def gradients(of):
  """Of a dense decoder's logits, or of its auxiliary loss, which is the predictors'."""
  graph, params = nnx.split(decoder(QUARTER, layers=4).make(nnx.Rngs(0)))

  def value(params):
    result = nnx.merge(graph, params)(batch(targets=T), training=True)
    return jax.nn.logsumexp(result.logits, axis=-1).mean() if of == "logits" else result.auxiliary_loss

  return nnx.to_flat_state(jax.jit(jax.grad(value))(params))


def test_the_predictors_loss_moves_the_predictor_alone_and_the_logits_all_else():
  moved = {of: {path for path, leaf in gradients(of) if (leaf[...] != 0).any()} for of in ("logits", "loss")}
  paths = {path for path, _ in gradients("logits")}
  predictor = {path for path in paths if path[-2:] in (("router", "hidden"), ("router", "out"))}
  assert len(predictor) == 2
  assert moved == {"logits": paths - predictor, "loss": predictor}  # with the scores' matrices among the former


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_training_knows_later_tokens_and_evaluation_does_not(training):
  network, example = model(decoder(QUARTER, layers=4)), batch(rows=4, targets=16)
  graph, variables = nnx.split(network)

  @jax.jit
  def found(targets):
    return nnx.merge(graph, variables)(example | {"targets": targets}, training=training)

  leak = future_leak(lambda targets: found(targets).logits, example["targets"], 7, jax.random.key(0))
  assert (leak > 0) == training, f"{leak:.1%} of the logits saw later tokens"
  shares = found(example["targets"]).metrics["decoder"]["depth/taken"]
  assert (shares == 0.25).all() if training else ((shares > 0) & (shares < 1)).any()


@pytest.mark.parametrize(
  ("architecture", "moe_router"),
  [
    slow("encoder_decoder", None),
    ("decoder", TIGHT_SWITCH),
    slow("decoder", router("prefix_rank", capacity_factor=1.0)),
  ],
  ids=["dense", "tight_switch", "prefix_rank"],
)
def test_steps_equal_teacher_forcing(architecture, moe_router):
  """Tokens that pass by are no keys of later steps, and take no slot and no rank of an expert."""
  settings = decoder(QUARTER, moe_router, 4, architecture, {"placement": EveryNth(1)} if moe_router else None)
  network, long = model(settings), batch(rows=3, targets=24)
  short = {name: array if name.startswith("inputs") else array[:, :16] for name, array in long.items()}
  whole = output(network, short)
  share = whole.metrics["decoder"]["depth/taken"]
  assert ((share > 0.1) & (share < 0.9)).any()
  if moe_router is TIGHT_SWITCH:
    assert (whole.metrics["decoder"]["dropped"] > 0).all()
  # The routers' rows have 16 tokens, however much is written.
  np.testing.assert_allclose(stepwise(network, long, row_length=16)[:, :16], whole.logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("training", [True, slow(False)], ids=["training", "evaluation"])
def test_a_scan_with_recomputation_equals_a_loop_over_blocks(training):
  """Of MoE layers with and without: they route unequal numbers of tokens."""
  switch = router("switch", jitter=0.0, balance_loss=0.3)
  settings = decoder(QUARTER, switch, 4, moe={"placement": EveryNth(1)}, remat="full")
  graph, params = nnx.split(Stack(settings, settings.decoder, causal=True, rngs=nnx.Rngs(0)))
  x, given = tokens(), context()
  cotangent = jnp.where(REAL[..., None], tokens(2), 0.0)

  def scanned(params):
    result = nnx.merge(graph, params)(x, given, training=training, key=None)
    return jnp.vdot(result.x, cotangent) + result.auxiliary_loss, result

  def looped(params):
    stack, y, reports = nnx.merge(graph, params), x, []
    for block in blocks_of(stack):
      y, of_block = block(y, given, training=training, key=None)
      reports.append(of_block)
    loss = sum(each["moe"].auxiliary_loss for each in reports) + sum(
      each["depth"]["depth/loss"] for each in reports[1::2]
    )
    return jnp.vdot(stack.norm(y), cotangent) + loss, reports

  (found, result), grads = jax.jit(jax.value_and_grad(scanned, has_aux=True))(params)
  (wanted, reports), expected = jax.jit(jax.value_and_grad(looped, has_aux=True))(params)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  for part, layers in (("moe", reports), ("depth", reports[1::2])):
    metrics = [each[part].metrics if part == "moe" else each[part] for each in layers]
    for name in metrics[0]:
      each = np.stack([of[name] for of in metrics])
      np.testing.assert_allclose(result.metrics[name], each, rtol=1e-4, atol=1e-6, err_msg=name)
  assert (result.routing is None) == training
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected)
