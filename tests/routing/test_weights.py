"""Any routing as a table of tokens and experts: by hand, and against the slow loop over assignments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.experts import dispatch
from moe.routing import RaggedRouting, SlotRouting, SoftRouting, routing_weights
from tests.routing.naive import NUM_EXPERTS, make, random_tokens, routing_of, token_weights


def test_slots_of_two_groups():
  token = jnp.array([[[0, 2], [2, 3]], [[1, 1 + 2], [0, 2]]])  # n = 3 marks an empty slot
  weight = jnp.array([[[0.5, 0.25], [0.75, 0.0]], [[1.0, 0.0], [0.125, 0.375]]])
  expected = np.array([[[0.5, 0], [0, 0], [0.25, 0.75]], [[0, 0.125], [1, 0], [0, 0.375]]])
  np.testing.assert_array_equal(routing_weights(SlotRouting(token, weight), 3), expected)


def test_a_ragged_tail_reaches_no_expert():
  token = jnp.array([[2, 0, 1, 3], [0, 1, 3, 3]])
  weight = jnp.array([[1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 0.0, 0.0]])
  routing = RaggedRouting(token, weight, jnp.array([[1, 2], [0, 2]]))
  expected = np.array([[[0, 2], [0, 3], [1, 0]], [[0, 4], [0, 5], [0, 0]]])
  np.testing.assert_array_equal(routing_weights(routing, 3), expected)


def test_what_lies_in_the_tail_does_not_matter():
  """A tail is told by the sizes of the groups too, not only by its tokens."""
  routing = RaggedRouting(jnp.array([[2, 0, 1]]), jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[1, 1]]))
  np.testing.assert_array_equal(routing_weights(routing, 3), [[[0, 2], [0, 0], [1, 0]]])


def test_layers_are_mapped_over():
  one = RaggedRouting(jnp.array([[2, 0, 1, 3]]), jnp.array([[1.0, 2.0, 3.0, 0.0]]), jnp.array([[1, 2]]))
  two = RaggedRouting(jnp.array([[0, 1, 3, 3]]), jnp.array([[4.0, 5.0, 0.0, 0.0]]), jnp.array([[0, 2]]))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two)
  expected = np.array([[[[0, 2], [0, 3], [1, 0]]], [[[0, 4], [0, 5], [0, 0]]]])
  np.testing.assert_array_equal(jax.vmap(lambda routing: routing_weights(routing, 3))(stacked), expected)


def test_soft_routing_sums_an_experts_slots():
  combine = jnp.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
  weights = routing_weights(SoftRouting(jnp.zeros_like(combine), combine), 3)
  np.testing.assert_array_equal(weights, combine.sum(-1))


@pytest.mark.parametrize(
  ("name", "kind"), [("expert_choice", SlotRouting), ("glam", SlotRouting), ("dropless", RaggedRouting)]
)
def test_routers_weights_are_those_of_a_loop_over_assignments(name, kind):
  options = {"group_size": 32} if kind is RaggedRouting else {}
  mask = jnp.arange(16)[None] < jnp.array([[16], [9], [12], [3]])
  routing = routing_of(make(name, **options), random_tokens(4, 16), mask=mask)
  assert isinstance(routing, kind)
  n = 64 // len(routing.token)
  weights = jax.jit(routing_weights, static_argnums=1)(routing, n)
  assert weights.dtype == jnp.float32
  np.testing.assert_array_equal(weights, np.nan_to_num(token_weights(routing, n, NUM_EXPERTS)))


@pytest.mark.parametrize("name", ["glam", "dropless", "soft_moe"])
def test_a_layer_of_constant_experts_gives_the_weights_to_each_token(name):
  """With one coordinate per expert, and experts that answer with their own, the layer's output is the table."""
  routing = routing_of(make(name), random_tokens(2, 16))
  weights = routing_weights(routing, 32 // len(jax.tree.leaves(routing)[0]))
  tokens = jnp.ones((*weights.shape[:2], NUM_EXPERTS))
  each = jnp.eye(NUM_EXPERTS)

  def slots(inputs, names):
    return jnp.broadcast_to(each[:, None], inputs.shape)

  def ragged(tokens, routing):
    rows, weight, sizes = dispatch.runs_by_expert(routing, tokens.shape[1])
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
    outputs = weight[:, None] * each.at[expert].get(mode="fill", fill_value=0)
    return (
      jnp.zeros((tokens.shape[0] * tokens.shape[1], NUM_EXPERTS))
      .at[rows]
      .add(outputs, mode="drop")
      .reshape(tokens.shape)
    )

  found = dispatch.dispatch_and_combine(tokens, routing, slots, ragged)
  np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)
