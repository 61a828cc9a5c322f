"""Zero, copy and constant experts: their closed forms, alone and in a layer whose router chooses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.experts.free import FreeExperts
from moe.experts.layer import MoE
from moe.nn.activations import ACTIVATIONS
from moe.nn.linear import T5_INIT
from moe.routing.router import FreeCounts

WIDTH, HIDDEN, EXPERTS = 6, 10, 3


def free_experts(d_model=2, **counts) -> FreeExperts:
  counts = FreeCounts(**{"zero": 0, "copy": 0, "constant": 0, **counts})
  return FreeExperts(counts, d_model, jnp.dtype("float32"), T5_INIT, rngs=nnx.Rngs(0))


def outputs(experts: FreeExperts, token, gates):
  return experts(jnp.array([[token]]), jnp.array([[gates]]))[0, 0]


def test_a_zero_expert_gives_nothing_and_a_copy_expert_its_gate_times_the_token():
  np.testing.assert_array_equal(outputs(free_experts(zero=2), [1.0, -2.0], [0.5, 0.25]), [0, 0])
  np.testing.assert_array_equal(outputs(free_experts(copy=1), [1.0, -2.0], [0.5]), [0.5, -1.0])
  np.testing.assert_array_equal(outputs(free_experts(zero=1, copy=2), [1.0, -2.0], [0.9, 0.5, 0.25]), [0.75, -1.5])


def test_a_constant_expert_mixes_the_token_with_its_vector():
  experts = free_experts(constant=1)
  experts.mix[...] = jnp.array([[np.log(3), 0.0], [5.0, 7.0]])
  experts.constant[...] = jnp.array([[4.0, 8.0]])
  # x W = (ln 3, 0), whose softmax is (3/4, 1/4): half of 3/4 (1, 0) + 1/4 (4, 8).
  np.testing.assert_allclose(outputs(experts, [1.0, 0.0], [0.5]), [0.875, 1.0], rtol=1e-6)


def test_gates_are_in_the_order_zero_copy_constant():
  experts = free_experts(WIDTH, zero=1, copy=2, constant=2)
  x, gates = jax.random.normal(jax.random.key(0), (2, 4, WIDTH)), jax.random.uniform(jax.random.key(1), (2, 4, 5))
  expected = (gates[..., 1] + gates[..., 2])[..., None] * x
  for j in range(2):
    shares = jax.nn.softmax(x @ experts.mix[...][:, 2 * j : 2 * j + 2])
    mixed = shares[..., :1] * x + shares[..., 1:] * experts.constant[j]
    expected += gates[..., 3 + j, None] * mixed
  np.testing.assert_allclose(experts(x, gates), expected, rtol=1e-5, atol=1e-6)


def layer(biases=None, **options) -> MoE:
  """Whose router decides by its matrices, all of unit variance, or by these biases of `[E + Z]` experts alone."""
  router = {"name": "moe_plus_plus", "router_bias": biases is not None, **options}
  moe = MoE(WIDTH, EXPERTS, HIDDEN, router, rngs=nnx.Rngs(0))
  for kernel in (moe.router.kernel, moe.router.free_kernel):
    kernel[...] = 0 * kernel[...] if biases is not None else 50 * kernel[...]
  if biases is not None:
    moe.router.kernel_bias[...], moe.router.free_bias[...] = jnp.split(jnp.array(biases), [EXPERTS])
  return moe


def tokens(batch=2, length=12):
  return jax.random.normal(jax.random.key(2), (batch, length, WIDTH))


def evaluated(moe: MoE, x):
  graph, state = nnx.split(moe)
  return jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)


def test_tokens_that_choose_zero_experts_alone_get_nothing_and_reach_no_network():
  y, report = evaluated(layer([0.0] * EXPERTS + [9.0, 9.0], zero=2, copy=0, constant=0), tokens())
  np.testing.assert_array_equal(y, 0)
  assert float(report.metrics["free_share"]) == 1
  assert float(report.metrics["experts_per_token"][0]) == 1
  assert float(report.metrics["assignments"]) == float(report.metrics["dropped"]) == 0


def test_tokens_that_choose_copy_experts_alone_get_their_gates_times_themselves():
  moe = layer([0.0] * EXPERTS + [np.log(3), np.log(3)], zero=0, copy=2, constant=0)
  np.testing.assert_allclose(evaluated(moe, tokens())[0], 2 * 3 / 9 * tokens(), rtol=1e-6)


def test_a_layer_is_the_sum_of_its_chosen_experts_of_any_kind_each_times_its_gate():
  moe, x = layer(top_k=3), tokens()
  y, report = evaluated(moe, x)
  logits = jnp.concatenate([x @ moe.router.kernel[...], x @ moe.router.free_kernel[...]], -1)
  gates = jax.nn.softmax(logits)  # [B, T, E + Z], not renormalised
  chosen = gates >= jnp.sort(gates)[..., -3:-2]
  each = [
    *(ACTIVATIONS["gelu"](x @ moe.experts.up[e]) @ moe.experts.down[e].T for e in range(EXPERTS)),
    *(moe.free(x, jnp.broadcast_to(one, (*x.shape[:2], 4))) for one in jnp.eye(4)),
  ]
  expected = sum(jnp.where(chosen[..., e], gates[..., e], 0)[..., None] * one for e, one in enumerate(each))
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
  ordinary, free = chosen[..., :EXPERTS].sum(-1), chosen[..., EXPERTS:].sum()
  assert len(np.unique(ordinary)) >= 3  # their number is the token's
  assert float(report.metrics["assignments"]) == pytest.approx(float(ordinary.mean()))
  assert float(report.metrics["free_share"]) == pytest.approx(float(free / chosen.sum()))


def test_a_gate_scale_multiplies_what_free_experts_give_too():
  moe = layer()
  y = evaluated(moe, tokens())[0]
  moe.gate_scale = 2.0
  np.testing.assert_array_equal(evaluated(moe, tokens())[0], 2 * y)


def test_gradients_reach_the_constants_their_mixing_and_the_router():
  graph, params = nnx.split(layer())

  def loss(params):
    return jnp.square(nnx.merge(graph, params)(tokens(), training=True)[0]).sum()  # without the auxiliary loss

  gradients = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
  for leaf in jax.tree.leaves((gradients["free"], gradients["router"], gradients["experts"])):
    assert jnp.isfinite(leaf).all() and float(jnp.abs(leaf).max()) > 1e-3


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_decoding_token_by_token_gives_the_outputs_of_the_whole_sequence(capacity):
  moe, x = layer(capacity_factor=capacity), tokens()
  whole, report = evaluated(moe, x)
  full = evaluated(layer(), x)[1]
  kept = [float(one.metrics["assignments"] / (1 - one.metrics["free_share"])) for one in (report, full)]
  assert kept[1] == pytest.approx(2) and (kept[0] < 1.5) == (capacity is not None)
  graph, variables = nnx.split(moe)
  step = jax.jit(lambda token, state: nnx.merge(graph, variables).decode(token, state))
  state = moe.init_decode_state(*x.shape[:2])
  for position in range(x.shape[1]):
    y, state = step(x[:, position : position + 1], state)
    np.testing.assert_allclose(y[:, 0], whole[:, position], rtol=1e-5, atol=1e-6)
