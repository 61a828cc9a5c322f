"""ReLU routing: its gates, its penalty, and the control of its sparsity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.routing import Groups, RouterConfig, RouterInput, Site
from moe.routing.methods.relu import balanced_l1, sparsity
from moe.training.state import merge, split
from tests.routing.naive import inputs_of, learn, make, random_tokens, route, routing_of, token_weights
from tests.routing.smooth import assert_gradient

RELU = RouterConfig.choices["relu"]
GATES = jnp.array([[[0.5, 0.0, 0.0, 1.0], [0.25, 0.0, 2.0, 0.0]], [[1.0, 3.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
MASK = jnp.array([[True, True], [True, False]])


def test_the_gates_are_the_positive_logits_and_the_others_cost_nothing():
  router, tokens = make("relu"), random_tokens(2, 16)
  logits = np.asarray(tokens) @ np.asarray(router.kernel[...])
  weights = token_weights(routing_of(router, tokens), 16, 4)
  np.testing.assert_allclose(weights, np.where(logits > 0, logits, np.nan), rtol=1e-5)


def test_the_penalty_counts_an_expert_as_dear_as_it_is_busy():
  """L1 of three real tokens, k = 2: experts are active for 3, 1, 1, 1 of them, so f = 4 / (2 * 3) * that."""
  expected = (3 * (0.5 + 0.25 + 1) + 3 + 2 + 1) * 4 / (2 * 3) / 3
  assert float(balanced_l1(GATES, MASK, 2.0)) == pytest.approx(expected)
  assert float(sparsity(GATES, MASK)) == 0.5


def test_balanced_and_as_sparse_as_wanted_it_is_the_l1_norm_and_no_gradient_flows_through_the_count():
  gates = jnp.array([[[0.5, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.7]]])
  mask = jnp.ones((1, 2), bool)
  value, gradient = jax.value_and_grad(balanced_l1)(gates, mask, 2.0)
  assert float(value) == pytest.approx(4.2 / 2)
  np.testing.assert_allclose(gradient, 0.5)


def trained(router, tokens, mask=None):
  """Logarithm of the coefficient's change in a training call."""
  before = float(router.log_coefficient[...])
  mask = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
  learn(router, RouterInput(tokens, mask))
  return float(router.log_coefficient[...]) - before


def test_the_coefficient_grows_while_the_gates_are_too_dense_and_shrinks_while_they_are_too_sparse():
  dense, sparse = random_tokens(2, 16), jnp.zeros((2, 16, 8))
  router = make("relu", experts_per_token=1.0)
  assert float(jnp.exp(router.log_coefficient[...])) == pytest.approx(1e-8)
  assert trained(router, dense) == pytest.approx(np.log(1.2), rel=1e-3)
  assert trained(router, sparse) == pytest.approx(-np.log(1.2), rel=1e-3)
  assert trained(router, dense, jnp.zeros((2, 16), bool)) == 0  # a batch of padding


def test_at_the_target_the_coefficient_rests_and_evaluation_never_moves_it():
  router = make("relu", experts_per_token=2.0)
  router.kernel[...] = jnp.zeros_like(router.kernel).at[0].set(jnp.array([1.0, 1.0, -1.0, -1.0]))
  tokens = random_tokens(2, 16)
  assert trained(router, tokens) == 0
  before = float(router.log_coefficient[...])
  router(RouterInput(jnp.zeros_like(tokens), jnp.ones((2, 16), bool)), training=False)
  assert float(router.log_coefficient[...]) == before


def test_the_loss_is_weighted_by_the_coefficient_from_before_the_step():
  router, tokens = make("relu", l1_start=0.25), random_tokens(2, 16)
  output = router(RouterInput(tokens, jnp.ones((2, 16), bool)), training=True)
  assert float(output.auxiliary_loss) == pytest.approx(0.25 * float(output.losses["l1"]))


def test_padding_enters_neither_the_penalty_nor_the_sparsity():
  mask = jnp.arange(16)[None] < jnp.array([[16], [5]])
  tokens = random_tokens(2, 16)
  router = make("relu")
  changed = jnp.where(mask[..., None], tokens, 9.0)
  assert float(route(router, tokens, mask=mask).losses["l1"]) == float(route(router, changed, mask=mask).losses["l1"])
  gates = jnp.abs(tokens)[..., :4]
  assert float(sparsity(jnp.where(mask[..., None], gates, 0.0), mask)) == 0


def test_the_penalty_steers_training_to_the_wanted_sparsity():
  """Descent on a task that rewards every gate, and so would keep all that are positive.

  One coordinate of the tokens is constant: on tokens without a mean no linear gate can be sparser than a half.
  """
  tokens, mask = random_tokens(4, 64).at[..., 0].set(1.0), jnp.ones((4, 64), bool)
  graph, params, state = split(make("relu", experts_per_token=1.0, l1_start=1e-3, l1_step=1.02))

  def step(carry, _):
    params, state = carry

    def objective(params):
      router = merge(graph, params, state)
      selection = router.select(RouterInput(tokens, mask), training=True)
      reward = 0.01 * jnp.log1p(selection.weight).sum(-1).mean()
      learn(router, RouterInput(tokens, mask))
      return selection.auxiliary_loss - reward, (split(router)[2], sparsity(selection.weight, mask))

    gradient, (state, found) = jax.grad(objective, has_aux=True)(params)
    return (jax.tree.map(lambda p, g: p - g, params, gradient), state), found

  found = np.asarray(jax.jit(lambda carry: jax.lax.scan(step, carry, length=3000)[1])((params, state)))
  assert found[0] < 0.65
  assert found[1500:].mean() == pytest.approx(0.75, abs=0.01)


def test_the_coefficient_recovers_from_any_time_of_too_much_sparsity():
  """As a plain number it would stay 0."""
  router = make("relu")
  router.log_coefficient[...] = router.log_coefficient[...] - 1000 * np.log(1.2)
  assert trained(router, jnp.abs(random_tokens(2, 16))) != 0


def test_where_the_target_cannot_be_reached_the_loss_stays_finite():
  router, inputs = make("relu", l1_step=10.0), inputs_of(jnp.abs(random_tokens(2, 16)), Groups(16))
  router.kernel[...] = jnp.abs(router.kernel[...])  # all gates are open
  for _ in range(60):  # the matrix does not move
    output, *_ = learn(router, inputs)
  assert np.isfinite(output.auxiliary_loss) and float(router.log_coefficient[...]) == pytest.approx(math.log(1e6))


def test_the_gradient_of_the_kernel_and_the_tokens_agrees_with_finite_differences():
  router, tokens = make("relu", l1_start=0.5, capacity_factor=4.0), random_tokens(2, 16)
  gain = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 4)), jnp.float32)
  graph, params, rest = nnx.split(router, nnx.Param, ...)

  def value(parts):
    params, tokens = parts
    output = route(nnx.merge(graph, params, rest), tokens)
    g, e = jnp.arange(2)[:, None, None], jnp.arange(4)[None, :, None]
    return (output.routing.weight * gain[g, output.routing.token, e]).sum() + output.auxiliary_loss

  assert_gradient(value, (params, tokens), step=1e-4, tolerance=2e-2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"experts_per_token": 0.0}, r"experts_per_token = 0\.0: expected more than 0"),
    ({"l1_start": 0.0}, r"l1_start = 0\.0: expected more than 0"),
    ({"l1_step": 1.0}, r"l1_step = 1\.0: expected more than 1"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    RELU(**options)


def test_as_many_experts_per_token_as_there_are_leave_nothing_to_steer():
  with pytest.raises(ConfigError, match=r"experts_per_token = 4\.0: expected less than the 4 experts"):
    RELU(experts_per_token=4.0).check(Site(8, 4), batch=2, length=8)
