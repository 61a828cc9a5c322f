"""A layer with each router there is: what the backward pass recomputes, and when state moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.experts.layer import MoE
from moe.routing import RouterConfig
from tests.slow import slow

BATCH, LENGTH, WIDTH, EXPERTS, VOCABULARY = 4, 12, 6, 4, 50
KEYS = jax.random.split(jax.random.key(0), 3)
X, COTANGENT = (jax.random.normal(key, (BATCH, LENGTH, WIDTH)) for key in KEYS[:2])
SEGMENTS = jnp.ones((BATCH, LENGTH), jnp.int32).at[1, 9:].set(0)
POSITIONS = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
IDS = jax.random.randint(KEYS[2], (BATCH, LENGTH), 2, VOCABULARY)

GROUPED = [
  *("expert_choice", "capped_expert_choice", "soft_expert_choice", "strictly_balanced", "base", "sinkhorn_base"),
  *("soft_moe", "batch_priority", "dropless"),
]


def layer(name: str):
  """Structure, parameters and state of a layer whose router makes unequal choices."""
  moe = MoE(WIDTH, EXPERTS, 8, name, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))
  for kernel in ("kernel", "free_kernel"):
    if (matrix := getattr(moe.router, kernel, None)) is not None:
      matrix[...] = jax.random.normal(jax.random.key(9), matrix.shape)
  return nnx.split(moe, nnx.Param, ...)


def apply(graph, params, state, x, *, training: bool):
  """Output, what training adds to the loss, routing and the state afterwards."""
  moe = nnx.merge(graph, params, state, copy=True)
  key = jax.random.key(5) if training else None
  y, report = moe(x, segments=SEGMENTS, ids=IDS, positions=POSITIONS, training=training, key=key)
  extra = report.auxiliary_loss
  if report.policy is not None:
    extra += (report.policy.log_prob * COTANGENT[..., 0] + report.policy.baseline).sum()
  moe.learn(report)
  return y, extra, report.routing, nnx.state(moe, nnx.Not(nnx.Param))


# Of each kind of routing, hand-written gradient, state and draw one; all others with `--slow`.
RECOMPUTED = {
  *("expert_choice", "switch", "dropless", "soft_moe", "base", "soft_expert_choice", "straight_through", "loss_free"),
  *("k_means", "rl_r", "moe_plus_plus"),
}


@pytest.mark.parametrize(
  "name",
  [name if name in RECOMPUTED else slow(name) for name in sorted(RouterConfig.choices)],
)
def test_a_recomputed_layer_decides_the_same_and_moves_its_state_once(name):
  graph, params, state = layer(name)

  def run(params, x):
    return apply(graph, params, state, x, training=True)

  def gradients(run):
    def loss(params, x):
      y, extra, routing, after = run(params, x)
      return jnp.vdot(y, COTANGENT) + extra, (routing, after)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, X)

  plain, recomputed = gradients(run), gradients(jax.checkpoint(run))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, recomputed)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(plain[0]))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    *((name, {}) for name in sorted(RouterConfig.choices)),
    *((name, {"group_size": 128}) for name in GROUPED),
    ("k_means", {"balanced": True}),
    ("soft_moe", {"group_size": 64, "capacity_factor": 1.0}),
  ],
)
def test_a_router_that_trains_on_large_batches_evaluates_on_any(name, options):
  moe = MoE(WIDTH, 2 * EXPERTS, 8, {"name": name, **options}, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))
  graph, state = nnx.split(moe)

  def apply(state, x, key=None):
    return nnx.merge(graph, state)(x, ids=jnp.full(x.shape[:2], 7), training=key is not None, key=key)[0]

  draw = functools.partial(jax.random.normal, jax.random.key(0))
  jax.eval_shape(apply, state, draw((4, 32, WIDTH)), jax.random.key(1))  # raises where training does
  for batch, length in [(1, 3), (3, 7)]:
    assert jax.eval_shape(apply, state, draw((batch, length, WIDTH))).shape == (batch, length, WIDTH)
  y = jax.jit(apply)(state, draw((1, 1, WIDTH)))  # fewer tokens than experts
  assert y.shape == (1, 1, WIDTH) and jnp.isfinite(y).all()


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_evaluation_moves_no_state_and_padding_comes_back_as_zero(name):
  graph, params, state = layer(name)
  y, _, _, after = jax.jit(lambda x: apply(graph, params, state, x, training=False))(X)
  jax.tree.map(np.testing.assert_array_equal, state, after)
  np.testing.assert_array_equal(y[1, 9:], 0)
  assert (y[0] != 0).any()
