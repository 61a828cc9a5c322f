"""The MoE layer against a loop over assignments, outputs and gradients, for every kind of dispatch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import build
from moe.experts import dispatch as local
from moe.experts.layer import MoE
from moe.experts.network import Experts
from moe.nn.activations import ACTIVATIONS
from moe.nn.linear import T5_INIT
from moe.routing import (
  Groups,
  RaggedRouting,
  Router,
  RouterConfig,
  RouterInput,
  RouterOutput,
  Routing,
  SlotRouting,
  SoftRouting,
)

BATCH, LENGTH, WIDTH, HIDDEN, EXPERTS = 3, 8, 6, 10, 4


class Mixture(Router):
  """Random soft routing with two slots an expert, for the dispatch of that kind."""

  def __init__(self, config, site, *, rngs):
    self.config, self.num_experts = config, site.num_experts
    self.dispatch = nnx.Param(rngs.params.normal((site.d_model, site.num_experts, 2)))

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    logits = jnp.einsum("gnd,dep->gnep", inputs.tokens, self.dispatch[...])
    routing = SoftRouting(jax.nn.softmax(logits, 1), jax.nn.sigmoid(logits))
    return RouterOutput(routing, {}, jnp.zeros(()), {})


@dataclasses.dataclass(frozen=True)
class MixtureConfig(RouterConfig):
  """Not registered, because other tests run over all routers that are."""

  name = "tests_mixture"

  def make(self, site, rngs):
    return Mixture(self, site, rngs=rngs)

  def is_causal(self, *, training):
    return False

  def is_batch_independent(self, length, *, training):
    return True

  def groups(self, batch, length, *, training=True):
    return Groups(length)


OPTIONS = [
  {"name": "expert_choice", "group_size": 12},
  {"name": "expert_choice", "capacity_factor": 1.0, "renormalize": True},
  {"name": "switch", "eval_capacity_factor": 1.0},
  {"name": "glam", "capacity_factor": 1.5},
  {"name": "token_choice", "order": "batch_priority", "group_size": 12},
  {"name": "token_choice", "top_k": 3, "capacity_factor": None},
  {"name": "token_choice", "capacity_factor": None, "group_size": 6},
]
CONFIGS = [*(build(RouterConfig, options, "router") for options in OPTIONS), MixtureConfig()]


def make_layer(router: RouterConfig, form: str = "geglu") -> MoE:
  return MoE(WIDTH, EXPERTS, HIDDEN, router, form=form, rngs=nnx.Rngs(0))


def assignments(routing: SlotRouting | RaggedRouting, group: int) -> list[tuple[int, int, int, tuple]]:
  """(group, token, expert, index of the weight) of every assignment, one at a time."""
  found = []
  for g, tokens in enumerate(np.asarray(routing.token)):
    if isinstance(routing, SlotRouting):
      entries = [(int(tokens[e, c]), e, (g, e, c)) for e, c in np.ndindex(tokens.shape)]
    else:
      owners = np.repeat(np.arange(EXPERTS), np.asarray(routing.group_sizes[g]))
      entries = [(int(tokens[i]), int(e), (g, i)) for i, e in enumerate(owners)]
    found += [(g, token, expert, index) for token, expert, index in entries if token < group]
  return found


def route(layer: MoE, x: jax.Array, segments: jax.Array) -> tuple[jax.Array, Routing]:
  """Tokens in groups, and the layer's own decision about them."""
  groups = layer.config.groups(BATCH, LENGTH)
  tokens = groups.cut(x)
  return tokens, layer.router(RouterInput(tokens, groups.cut(segments) > 0), training=False).routing


def one_hot(routing: Routing, tokens: jax.Array) -> np.ndarray | None:
  """1 at (index of the weight, group, token, expert) of every assignment."""
  if isinstance(routing, SoftRouting):
    return None
  table = np.zeros((*routing.weight.shape, *tokens.shape[:2], EXPERTS), np.float32)
  for g, token, expert, index in assignments(routing, tokens.shape[1]):
    table[(*index, g, token, expert)] = 1
  return table


def naive(layer: MoE, x: jax.Array, segments: jax.Array, table: np.ndarray | None) -> jax.Array:
  """Every expert on every token, then each assignment's weight at its token and expert."""
  tokens, routing = route(layer, x, segments)
  experts = layer.experts

  def all_experts(tokens):
    before = [jnp.einsum("...d,edf->...ef", tokens, w[...]) for w in (experts.gate, experts.up) if w is not None]
    return jnp.einsum("...ef,edf->...ed", jax.nn.gelu(before[0]) * before[1], experts.down[...])

  if isinstance(routing, SoftRouting):
    mixtures = jnp.einsum("gnep,gnd->gepd", routing.dispatch, tokens)
    outputs = jnp.stack([all_experts(mixtures[:, e])[:, :, e] for e in range(EXPERTS)], 1)
    return jnp.einsum("gnep,gepd->gnd", routing.combine, outputs).reshape(x.shape)
  weight = jnp.tensordot(routing.weight, table, routing.weight.ndim)
  return jnp.einsum("gne,gned->gnd", weight, all_experts(tokens)).reshape(x.shape)


@pytest.fixture
def batch():
  x = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
  segments = jnp.ones((BATCH, LENGTH), jnp.int32).at[1, 5:].set(0)
  return x, segments


@pytest.mark.parametrize("router", CONFIGS, ids=lambda router: router.name)
def test_outputs_and_gradients_equal_a_loop_over_assignments(router, batch):
  x, segments = batch
  cotangent = jax.random.normal(jax.random.key(2), x.shape)
  graph, params = nnx.split(make_layer(router))

  def fast(params, x):
    return jnp.vdot(nnx.merge(graph, params)(x, segments=segments, training=False)[0], cotangent)

  tokens, routing = jax.jit(lambda params: route(nnx.merge(graph, params), x, segments))(params)
  table = one_hot(routing, tokens)

  def slow(params, x):
    return jnp.vdot(naive(nnx.merge(graph, params), x, segments, table), cotangent)

  value, gradients = jax.jit(jax.value_and_grad(fast, argnums=(0, 1)))(params, x)
  expected, expected_gradients = jax.jit(jax.value_and_grad(slow, argnums=(0, 1)))(params, x)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)
  assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("form", sorted(ACTIVATIONS))
def test_every_form_of_expert_has_the_gradient_of_its_formula(form):
  experts = Experts(EXPERTS, WIDTH, HIDDEN, form, jnp.float32, T5_INIT, rngs=nnx.Rngs(0))
  graph, params = nnx.split(experts)
  x = jax.random.normal(jax.random.key(1), (EXPERTS, 5, WIDTH))
  cotangent = jax.random.normal(jax.random.key(2), x.shape)

  def plain(params, x):
    e = nnx.merge(graph, params)
    before = [jnp.einsum("erd,edf->erf", x, w[...]) for w in (e.gate, e.up) if w is not None]
    return jnp.einsum("erf,edf->erd", ACTIVATIONS[form](*before), e.down[...])

  _, expected = jax.vjp(plain, params, x)
  _, actual = jax.vjp(lambda params, x: _slots(nnx.merge(graph, params), x), params, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual(cotangent), expected(cotangent)
  )


def test_index_dispatch_and_combine_equal_one_hot_masks():
  tokens = jax.random.normal(jax.random.key(0), (2, 5, WIDTH))
  token = jnp.array([[[0, 3, 5], [3, 1, 4]], [[5, 5, 5], [2, 2, 0]]])  # 5 = n marks an empty slot
  weight = jnp.where(token < 5, jax.random.uniform(jax.random.key(1), token.shape), 0)
  routing = SlotRouting(token, weight)
  mask = jax.nn.one_hot(token, 5)
  inputs = local.dispatch_slots(tokens, routing)
  np.testing.assert_array_equal(
    inputs.reshape(2, 2, 3, WIDTH), jnp.einsum("gecn,gnd->egcd", mask, tokens), err_msg="experts, groups, slots"
  )
  outputs = jax.random.normal(jax.random.key(2), inputs.shape)
  expected = jnp.einsum("gecn,gec,egcd->gnd", mask, weight, outputs.reshape(2, 2, 3, WIDTH))
  np.testing.assert_allclose(local.combine_slots(outputs, routing, 5), expected, rtol=1e-6)


def test_ragged_groups_are_merged_into_one_run_per_expert():
  routing = RaggedRouting(
    token=jnp.array([[2, 0, 1, 3], [0, 1, 2, 0]]),
    weight=jnp.array([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0, 7.0]]),
    group_sizes=jnp.array([[1, 2], [3, 1]]),
  )
  rows, weight, sizes = local.runs_by_expert(routing, 3)
  np.testing.assert_array_equal(sizes, [4, 3])
  np.testing.assert_array_equal(rows, [2, 3, 4, 5, 0, 1, 3, 6])  # 6 = G * n marks what belongs to no expert
  np.testing.assert_array_equal(weight, [1, 4, 5, 6, 2, 3, 7, 0])


def test_bfloat16_layer_computes_in_bfloat16_with_float32_parameters(batch):
  x, segments = batch
  layer = MoE(WIDTH, EXPERTS, HIDDEN, CONFIGS[0], dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param))} == {jnp.dtype("float32")}
  exact = MoE(WIDTH, EXPERTS, HIDDEN, CONFIGS[0], rngs=nnx.Rngs(0))
  x = x.astype(jnp.bfloat16)
  y = nnx.jit(lambda layer: layer(x, segments=segments, training=False)[0])(layer)
  assert y.dtype == jnp.bfloat16
  expected = nnx.jit(lambda layer: layer(x.astype(jnp.float32), segments=segments, training=False)[0])(exact)
  np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05 * np.abs(expected).max())


def test_the_report_carries_losses_and_metrics_of_the_router(batch):
  x, segments = batch
  report = nnx.jit(lambda layer: layer(x, segments=segments, training=True)[1])(make_layer(CONFIGS[3]))
  assert {"loss/balance", "loss/z", "load", "dropped", "experts_per_token"} <= set(report.metrics)
  router = CONFIGS[3]
  expected = router.balance_loss * report.metrics["loss/balance"] + router.z_loss * report.metrics["loss/z"]
  np.testing.assert_allclose(report.auxiliary_loss, expected, rtol=1e-6)


def test_shared_experts_are_added_with_weight_one_for_any_router(batch):
  x, segments = batch
  with_shared = MoE(WIDTH, EXPERTS, HIDDEN, CONFIGS[0], form="geglu", shared_experts=2, rngs=nnx.Rngs(0))
  assert with_shared.shared.up[...].shape == (WIDTH, 2 * HIDDEN)
  call = nnx.jit(lambda layer, x: layer(x, segments=segments, training=False)[0])
  shared, both = with_shared.shared, call(with_shared, x)
  with_shared.shared = None
  np.testing.assert_allclose(both, call(with_shared, x) + shared(x), rtol=1e-5, atol=1e-5)


def test_a_gate_scale_multiplies_what_the_routed_experts_give(batch):
  x, segments = batch
  call = nnx.jit(lambda layer, x: layer(x, segments=segments, training=False)[0])
  plain, scaled = (MoE(WIDTH, EXPERTS, HIDDEN, CONFIGS[0], gate_scale=s, rngs=nnx.Rngs(0)) for s in (1.0, 4.0))
  np.testing.assert_array_equal(call(scaled, x), 4 * call(plain, x))


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_the_initial_scale_is_that_of_the_routers_matrices_alone(name):
  def made(scale):
    return MoE(WIDTH, EXPERTS, HIDDEN, name, router_init_scale=scale, vocab_size=50, rngs=nnx.Rngs(0))

  plain, scaled = (nnx.to_flat_state(nnx.state(made(scale))) for scale in (1.0, 0.25))
  for (path, one), (_, other) in zip(plain, scaled, strict=True):
    factor = 0.25 if path[0] == "router" and isinstance(one, nnx.Param) and one.ndim >= 2 else 1
    np.testing.assert_array_equal(other[...], factor * one[...], err_msg=str(path))


def _slots(experts, x):
  return experts.slots(experts.weights(), x)
