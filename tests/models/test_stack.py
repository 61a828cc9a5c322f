"""Scanning over stacked units changes nothing but the time to compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.models import make_model
from moe.models.block import Context
from moe.models.stack import Stack
from moe.nn.attention import segment_mask
from moe.routing import ROUTERS
from moe.routing.methods.token_choice import TokenChoice
from tests.models.tiny import DROPLESS, EXPERT_CHOICE, TIGHT_SWITCH, batch, config, output, router

# Two units of two blocks in each stack.
SETTINGS = config(decoder_router=DROPLESS, encoder_router=EXPERT_CHOICE, encoder_layers=4, decoder_layers=4)


def context(stack, length=5, rows=2):
  segments = jnp.ones((rows, length), jnp.int32)
  return Context(
    mask=segment_mask(segments, segments),
    ids=segments,
    positions=jnp.tile(jnp.arange(length), (rows, 1)),
    segments=segments,
    bias=None if stack.bias is None else stack.bias(length),
  )


@pytest.mark.parametrize("relative_bias", ["shared", "per_layer"])
def test_scan_equals_a_loop_over_units(relative_bias):
  settings = config(encoder_router=EXPERT_CHOICE, encoder_layers=4, relative_bias=relative_bias)
  stack = Stack(settings, "encoder", rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (2, 5, 16))
  scanned = jax.jit(lambda x: stack(x, context(stack), training=True, key=None))(x)
  graph, variables = nnx.split(stack.units)
  apply = jax.jit(lambda variables, x: nnx.merge(graph, variables)(x, context(stack), training=True, key=None))
  losses = []
  for i in range(2):
    result = apply(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x)
    x = result.x
    losses.append(result.auxiliary_loss)
    for name, value in result.metrics.items():
      np.testing.assert_allclose(scanned.metrics[name][i], value, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(scanned.x, stack.norm(x), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(scanned.auxiliary_loss, sum(losses), rtol=1e-5)


def test_units_start_with_different_parameters():
  stack = Stack(SETTINGS, "encoder", rngs=nnx.Rngs(0))
  for path, leaf in nnx.to_flat_state(nnx.state(stack.units)):
    assert leaf.shape[0] == 2
    if path[-1] != "scale":
      assert (leaf[...][0] != leaf[...][1]).any(), path


@functools.cache
def gradients(remat: str):
  settings = config("decoder", router("gshard"), remat=remat, dropout=0.1, moe_every=1)
  graph, params = nnx.split(make_model(settings, nnx.Rngs(0)))

  def loss(params):
    result = nnx.merge(graph, params)(batch(), training=True, key=jax.random.key(3))
    return jax.nn.logsumexp(result.logits, axis=-1).mean() + result.auxiliary_loss

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_keeps_gradients_with_randomness(remat):
  """Dropout and GShard's chance must fall alike when the backward pass computes a unit again."""
  kept, again = gradients("none"), gradients(remat)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, again)


def equations(jaxpr) -> int:
  """Equations of a jaxpr and of all within."""
  inner = (getattr(leaf, "jaxpr", leaf) for eqn in jaxpr.eqns for leaf in jax.tree.leaves(list(eqn.params.values())))
  return len(jaxpr.eqns) + sum(equations(leaf) for leaf in inner if hasattr(leaf, "eqns"))


def gradient_equations(layers: int) -> int:
  settings = config(
    decoder_router=DROPLESS, encoder_router=EXPERT_CHOICE, encoder_layers=layers, decoder_layers=layers, remat="full"
  )
  graph, params = nnx.split(nnx.eval_shape(lambda: make_model(settings, nnx.Rngs(0))))

  def loss(params, batch):
    return nnx.merge(graph, params)(batch, training=True, key=jax.random.key(0)).logits.sum()

  return equations(jax.make_jaxpr(jax.grad(loss))(params, batch()).jaxpr)


def test_program_of_32_layers_is_as_long_as_of_4():
  short = gradient_equations(4)
  assert short > 100
  assert gradient_equations(32) == short


def test_metrics_lead_with_moe_layers_and_losses_add_up():
  settings = config(
    decoder_router=TIGHT_SWITCH, encoder_router=EXPERT_CHOICE, encoder_layers=6, decoder_layers=4, num_experts=4
  )
  result = output(make_model(settings, nnx.Rngs(0)), batch())
  assert result.metrics["encoder"]["load"].shape == (3, 4)
  assert result.metrics["decoder"]["load"].shape == (2, 4)
  assert result.metrics["decoder"]["loss/balance"].shape == (2,)
  expected = TIGHT_SWITCH.options.balance_loss * result.metrics["decoder"]["loss/balance"].sum()
  np.testing.assert_allclose(result.auxiliary_loss, expected, rtol=1e-5)


def test_dense_stack_has_no_metrics_and_no_auxiliary_loss():
  result = output(make_model(config(), nnx.Rngs(0)), batch())
  assert result.metrics == {"encoder": {}, "decoder": {}}
  assert result.auxiliary_loss == 0


class _Calls(nnx.Variable):
  pass


class _Counting(TokenChoice):
  """Token choice that counts, in a variable which is no parameter, what it has routed."""

  def __init__(self, options, site, *, rngs):
    super().__init__(options, site, rngs=rngs)
    self.seen = _Calls(jnp.zeros(site.num_experts))

  def __call__(self, inputs, *, training):
    routed = super().__call__(inputs, training=training)
    self.seen[...] += routed.metrics["load"] * training
    return routed


@pytest.mark.parametrize("remat", ["none", "full"])
def test_state_that_routers_change_is_written_back_layer_by_layer(monkeypatch, remat):
  monkeypatch.setitem(ROUTERS, "counting", _Counting)
  settings = config("decoder", router("counting"), decoder_layers=4, remat=remat)
  graph, variables = nnx.split(make_model(settings, nnx.Rngs(0)))

  @jax.jit
  def step(variables):
    network = nnx.merge(graph, variables)
    return network(batch(), training=True).metrics["decoder"]["load"], nnx.state(network)

  first, variables = step(variables)
  second, variables = step(variables)
  (seen,) = (leaf[...] for path, leaf in nnx.to_flat_state(variables) if path[-1] == "seen")
  assert (seen[0] != seen[1]).any()
  np.testing.assert_allclose(seen, first + second, rtol=1e-6)
