"""Scanning over units of blocks changes nothing but the time to compile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.models.block import Context
from moe.models.placement import EveryNth, Last, Listed
from moe.models.stack import Stack
from moe.nn.attention import segment_mask
from moe.routing import RouterState
from moe.routing.methods.token_choice import TokenChoice, TokenChoiceConfig
from tests.models.tiny import DROPLESS, EXPERT_CHOICE, TIGHT_SWITCH, batch, config, output, router, stack
from tests.slow import first_ones, slow

# One unit of two blocks, twice, in each stack.
SETTINGS = config(decoder=stack(DROPLESS, layers=4), encoder=stack(EXPERT_CHOICE, layers=4))

# Layers, and which of them are MoE layers: units of one and of two MoE blocks, before, between and after dense ones.
PLACEMENTS = {
  "every_2": (4, EveryNth(2)),
  "every": (3, EveryNth(1)),
  "last": (5, Last(2)),
  "listed": (7, Listed((1, 2, 4, 5))),
  "first": (4, Listed((0,))),
}


def encoder(settings, seed=0) -> Stack:
  return Stack(settings, settings.encoder, causal=False, rngs=nnx.Rngs(seed))


def context(stack, length=5, rows=2):
  segments = jnp.ones((rows, length), jnp.int32)
  return Context(
    mask=segment_mask(segments, segments),
    ids=segments,
    positions=jnp.tile(jnp.arange(length), (rows, 1)),
    segments=segments,
    bias=None if stack.bias is None else stack.bias(length),
  )


def blocks_of(stack):
  """The blocks one after the other, each with its own slice of the variables."""
  for unit, repeats in zip(stack.units, stack.repeats, strict=True):
    graph, variables = nnx.split(unit)
    for i in range(repeats):
      yield from nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], variables)).blocks


def looped(stack, x):
  """Output and reports of the MoE layers of a stack without dropout, by a loop over its blocks."""
  given, reports = context(stack), []
  for block in blocks_of(stack):
    x, of_parts = block(x, given, training=True, key=None)
    reports += of_parts.values()
  return stack.norm(x), reports


@pytest.mark.parametrize(
  ("name", "relative_bias"),
  [
    ("listed", "shared"),
    ("every_2", "per_layer"),
    *(slow(name, "shared") for name in PLACEMENTS if name != "listed"),
    slow("last", "per_layer"),
  ],
)
def test_scan_equals_a_loop_over_blocks(name, relative_bias):
  layers, placement = PLACEMENTS[name]
  switch = router("switch", jitter=0.0, balance_loss=0.3)
  settings = config(encoder=stack(switch, layers, placement=placement), relative_bias=relative_bias)
  graph, params = nnx.split(encoder(settings))
  x = jax.random.normal(jax.random.key(1), (2, 5, 16))
  cotangent = jax.random.normal(jax.random.key(2), x.shape)

  def scan(params, x):
    module = nnx.merge(graph, params)
    result = module(x, context(module), training=True, key=None)
    return jnp.vdot(result.x, cotangent) + result.auxiliary_loss, result

  def loop(params, x):
    y, reports = looped(nnx.merge(graph, params), x)
    return jnp.vdot(y, cotangent) + sum(report.auxiliary_loss for report in reports), (y, reports)

  (_, result), gradients = jax.jit(jax.value_and_grad(scan, (0, 1), has_aux=True))(params, x)
  (_, (y, reports)), expected = jax.jit(jax.value_and_grad(loop, (0, 1), has_aux=True))(params, x)
  np.testing.assert_allclose(result.x, y, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(result.auxiliary_loss, sum(report.auxiliary_loss for report in reports), rtol=1e-5)
  assert len(reports) == sum(placement.has_experts(layers))
  assert len({float(report.auxiliary_loss) for report in reports}) == len(reports)  # an exchange would show
  for layer, report in enumerate(reports):
    for name, value in report.metrics.items():
      np.testing.assert_allclose(result.metrics[name][layer], value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(result.routing.token[layer], report.routing.token)
    np.testing.assert_allclose(result.routing.weight[layer], report.routing.weight, rtol=1e-5, atol=1e-6)
  assert {len(value) for value in result.metrics.values()} == {len(reports)}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected)


def test_units_start_with_different_parameters():
  stack = encoder(SETTINGS)
  for path, leaf in nnx.to_flat_state(nnx.state(stack.units)):
    assert leaf.shape[0] == 2
    if path[-1] != "scale":
      assert (leaf[...][0] != leaf[...][1]).any(), path


@functools.cache
def gradients(remat: str):
  settings = config("decoder", stack(router("causal_gshard"), placement=EveryNth(1)), remat=remat, dropout=0.1)
  graph, params = nnx.split(settings.make(nnx.Rngs(0)))

  def loss(params):
    result = nnx.merge(graph, params)(batch(), training=True, key=jax.random.key(3))
    return jax.nn.logsumexp(result.logits, axis=-1).mean() + result.auxiliary_loss

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", first_ones(1, ["dots_and_weights", "dots", "full"]))
def test_rematerialisation_keeps_gradients_with_randomness(remat):
  """Dropout and GShard's chance must fall alike when the backward pass recomputes a unit."""
  kept, again = gradients("none"), gradients(remat)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, again)


def equations(jaxpr) -> int:
  """Equations of a jaxpr and of all within."""
  inner = (getattr(leaf, "jaxpr", leaf) for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values())))
  return len(jaxpr.eqns) + sum(equations(leaf) for leaf in inner if hasattr(leaf, "eqns"))


def gradient_equations(layers: int, placement) -> int:
  decoder, encoder = (stack(router, layers, placement=placement) for router in (DROPLESS, EXPERT_CHOICE))
  settings = config(decoder=decoder, encoder=encoder, remat="full")
  graph, params = nnx.split(nnx.eval_shape(lambda: settings.make(nnx.Rngs(0))))

  def loss(params, batch):
    return nnx.merge(graph, params)(batch, training=True, key=jax.random.key(0)).logits.sum()

  return equations(jax.make_jaxpr(jax.grad(loss))(params, batch()).jaxpr)


@pytest.mark.parametrize(
  ("short", "long"), [(EveryNth(2), EveryNth(2)), slow(Last(2), Last(16))], ids=["every_2", "last"]
)
def test_program_of_32_layers_is_as_long_as_of_4(short, long):
  shorter = gradient_equations(4, short)
  assert shorter > 100
  assert gradient_equations(32, long) == shorter


def test_metrics_lead_with_moe_layers_and_losses_add_up():
  settings = config(decoder=stack(TIGHT_SWITCH, layers=4), encoder=stack(EXPERT_CHOICE, layers=6))
  result = output(settings.make(nnx.Rngs(0)), batch())
  assert result.metrics["encoder"]["load"].shape == (3, 4)
  assert result.metrics["decoder"]["load"].shape == (2, 4)
  assert result.metrics["decoder"]["loss/balance"].shape == (2,)
  expected = TIGHT_SWITCH.balance_loss * result.metrics["decoder"]["loss/balance"].sum()
  np.testing.assert_allclose(result.auxiliary_loss, expected, rtol=1e-5)


def test_losses_are_summed_over_the_moe_layers_of_both_stacks_or_averaged():
  stacks = {"decoder": stack(TIGHT_SWITCH, layers=4), "encoder": stack(router("glam"), layers=6)}
  total, mean = (
    output(config(**stacks, auxiliary_losses=how).make(nnx.Rngs(0)), batch()).auxiliary_loss for how in ("sum", "mean")
  )
  assert float(total) > 5 * 0.01 * 0.99  # five layers of balance loss of at least about 1, of weight 0.01
  assert float(mean) == pytest.approx(float(total) / 5, rel=1e-6)


def test_encoder_and_decoder_have_experts_routers_and_placements_of_their_own():
  settings = config(
    decoder=stack(DROPLESS, layers=3, num_experts=2, placement=Last(1), d_ff=12, feed_forward="relu"),
    encoder=stack(EXPERT_CHOICE, layers=4, num_experts=6, placement=Listed((1, 2)), shared_experts=1),
  )
  network = settings.make(nnx.Rngs(0))
  moe = {side: [b.moe for b in blocks_of(getattr(network, side)) if b.moe] for side in ("encoder", "decoder")}
  assert [layer.experts.up.shape for layer in moe["encoder"]] == [(6, 16, 24)] * 2
  assert [layer.experts.up.shape for layer in moe["decoder"]] == [(2, 16, 12)]
  assert {layer.config.name for layer in moe["encoder"]} == {"expert_choice"}
  assert moe["decoder"][0].config == DROPLESS
  assert moe["encoder"][0].shared is not None and moe["decoder"][0].shared is None
  result = output(network, batch())
  assert result.metrics["encoder"]["load"].shape == (2, 6)
  assert result.metrics["decoder"]["load"].shape == (1, 2)
  assert jnp.isfinite(result.logits).all()


def test_dense_stack_has_no_metrics_and_no_auxiliary_loss():
  result = output(config().make(nnx.Rngs(0)), batch())
  assert result.metrics == {"encoder": {}, "decoder": {}}
  assert result.auxiliary_loss == 0


@dataclasses.dataclass(frozen=True)
class _CountingConfig(TokenChoiceConfig):
  def make(self, site, rngs):
    return _Counting(self, site, rngs=rngs)


class _Counting(TokenChoice):
  """Token choice that remembers the choices of all steps."""

  def __init__(self, config, site, *, rngs):
    super().__init__(config, site, rngs=rngs)
    self.chosen = RouterState(jnp.zeros(site.num_experts))

  def seen(self, decision):
    return {"chosen": (decision.choices[..., None] == jnp.arange(self.num_experts)).sum((0, 1, 2))}

  def next_state(self, seen, share):
    return {"chosen": self.chosen[...] + seen["chosen"].sum(0)}


@pytest.mark.parametrize("placement", [EveryNth(2), Listed((0, 1, 3, 4))], ids=lambda placement: placement.name)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_routers_learn_layer_by_layer_from_what_each_has_seen_in_all_micro_batches(remat, placement):
  decoder = stack(_CountingConfig(), layers=6 if placement.name == "listed" else 4, placement=placement)
  network = config("decoder", decoder, remat=remat).make(nnx.Rngs(0))
  graph, variables = nnx.split(network)

  @jax.jit
  def step(variables):
    network = nnx.merge(graph, variables)
    outputs = [network(batch(seed=seed), training=True) for seed in range(2)]
    network.decoder.learn(jax.tree.map(lambda *each: jnp.stack(each), *(output.seen["decoder"] for output in outputs)))
    return sum(output.seen["decoder"]["chosen"] for output in outputs), nnx.state(network)

  expected, variables = step(variables)
  nnx.update(network, variables)
  chosen = jnp.stack([block.moe.router.chosen[...] for block in blocks_of(network.decoder) if block.moe])
  assert (chosen[0] != chosen[1]).any() and (chosen.sum(-1) == 2 * 16 * 2).all()
  np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_router_states_are_loaded_into_the_layers_that_they_are_of(name):
  layers, placement = PLACEMENTS[name]
  bias = lambda block: block.moe.router.bias  # noqa: E731
  network = encoder(config(encoder=stack(router("loss_free"), layers, placement=placement)))
  count = sum(placement.has_experts(layers))
  assert all(isinstance(bias(block), RouterState) for block in blocks_of(network) if block.moe)
  each = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
  network.load_router_state({"bias": each})
  np.testing.assert_array_equal([bias(block)[...] for block in blocks_of(network) if block.moe], each)
  network.load_router_state({"bias": each[0]})
  np.testing.assert_array_equal([bias(block)[...] for block in blocks_of(network) if block.moe], [each[0]] * count)
