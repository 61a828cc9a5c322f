"""Experts with biases are those networks, however tokens get to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.experts.layer import MoE
from moe.routing import SoftRouting, routing_weights

WIDTH, EXPERTS, HIDDEN = 6, 4, 10
X = jax.random.normal(jax.random.key(1), (2, 8, WIDTH))
COTANGENT = jax.random.normal(jax.random.key(2), X.shape)


def layer(router, form="gelu", bias=True) -> MoE:
  made = MoE(WIDTH, EXPERTS, HIDDEN, router, form=form, bias=bias, rngs=nnx.Rngs(0))
  for vector in jax.tree.leaves(nnx.state(made.experts.biases)) if bias else []:
    assert vector.std() > 0
  return made


def naive(layer, x, routing):
  """Every expert on every row it may get, then the routing's weights."""
  experts, biases = layer.experts, layer.experts.biases
  ups = [(w[...], b[...]) for w, b in ((experts.gate, biases.gate), (experts.up, biases.up)) if w is not None]

  def all_experts(rows):  # [..., d] to [..., E, d]
    before = [jnp.einsum("...d,edf->...ef", rows, w) + b for w, b in ups]
    hidden = layer.experts.activation(*before)
    return jnp.einsum("...ef,edf->...ed", hidden, experts.down[...]) + biases.down[...]

  if isinstance(routing, SoftRouting):
    mixed = jnp.einsum("gnep,gnd->gepd", routing.dispatch, x)
    outputs = jnp.stack([all_experts(mixed[:, e])[:, :, e] for e in range(EXPERTS)], 1)
    return jnp.einsum("gnep,gepd->gnd", routing.combine, outputs)
  return jnp.einsum("gne,gned->gnd", routing_weights(routing, x.shape[1]), all_experts(x))


@pytest.mark.parametrize("form", ["gelu", "geglu"])
@pytest.mark.parametrize(
  "router", [{"name": "expert_choice", "group_size": 8}, {"name": "dropless", "group_size": 8}, "soft_moe"]
)
def test_outputs_and_gradients_are_those_of_networks_with_biases(router, form):
  graph, params = nnx.split(layer(router, form))

  def fast(params, x):
    y, report = nnx.merge(graph, params)(x)
    return jnp.vdot(y, COTANGENT), report.routing

  def slow(params, x):
    made = nnx.merge(graph, params)
    return jnp.vdot(naive(made, x, made(x)[1].routing), COTANGENT)

  (value, _), gradients = jax.jit(jax.value_and_grad(fast, argnums=(0, 1), has_aux=True))(params, X)
  expected, expected_gradients = jax.jit(jax.value_and_grad(slow, argnums=(0, 1)))(params, X)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected_gradients)


@pytest.mark.parametrize(
  "router",
  [
    {"name": "expert_choice", "group_size": 128},
    {"name": "dropless", "group_size": 128},
    {"name": "soft_moe", "slots": 64},
  ],
  ids=lambda router: router["name"],
)
def test_biases_cost_next_to_nothing(router):
  """Two elementwise additions, and a product of `[n, E]` and `[E, d]`."""

  def flops(bias):
    made = MoE(128, 4, 256, router, bias=bias, rngs=nnx.Rngs(0))
    graph, params = nnx.split(made)
    loss = jax.jit(jax.grad(lambda params, x: nnx.merge(graph, params)(x)[0].sum()))
    return loss.lower(params, jnp.ones((1, 128, 128))).compile().cost_analysis()["flops"]

  assert flops(True) < 1.02 * flops(False)


def test_padding_gets_no_bias():
  y, _ = layer("switch")(X, segments=jnp.ones((2, 8), jnp.int32).at[1, 5:].set(0))
  np.testing.assert_array_equal(y[1, 5:], 0)
  assert (y[0] != 0).any()


def test_biases_are_parameters_of_each_expert_and_are_there_only_if_asked_for():
  assert layer("switch", bias=False).experts.biases is None
  shapes = {
    path[-1]: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(layer("switch", "geglu").experts.biases))
  }
  assert shapes == {"up": (4, 10), "gate": (4, 10), "down": (4, 6)}
