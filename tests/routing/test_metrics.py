"""Metrics of small routings that can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import RaggedRouting, RouterConfig, SlotRouting, SoftRouting
from moe.routing.metrics import routing_metrics
from tests.routing.naive import make, random_tokens, route

MASK = jnp.array([[True, True, True, False]])
# Token 0 at both experts, token 1 at expert 0, token 2 nowhere, token 3 is padding, one slot is empty.
SLOTS = SlotRouting(jnp.array([[[0, 1], [0, 4]]]), jnp.array([[[0.5, 0.6], [0.4, 0.0]]]))
RAGGED = RaggedRouting(jnp.array([[0, 1, 0, 4, 4]]), jnp.array([[0.5, 0.6, 0.4, 0, 0]]), jnp.array([[2, 1]]))


@pytest.mark.parametrize("routing", [SLOTS, RAGGED], ids=["slots", "ragged"])
def test_counts_of_a_literal_example(routing):
  metrics = routing_metrics(routing, MASK, asked=jnp.array(6))
  np.testing.assert_allclose(metrics["load"], [2 / 3, 1 / 3], rtol=1e-6)
  assert float(metrics["load_max"]) == pytest.approx(4 / 3)
  assert float(metrics["load_cv"]) == pytest.approx(1 / 3)
  assert float(metrics["dropped"]) == pytest.approx(0.5)
  np.testing.assert_allclose(metrics["experts_per_token"], np.array([1, 1, 1, 0, 0, 0]) / 3, rtol=1e-6)
  assert "gate_entropy" not in metrics


def test_where_tokens_ask_for_nothing_dropped_are_those_that_nobody_took():
  assert float(routing_metrics(SLOTS, MASK)["dropped"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("routing", "rows"), [(SLOTS, 4), (RAGGED, 3)], ids=["slots", "ragged"])
def test_work_is_counted_in_rows_per_real_token_and_use_in_assignments(routing, rows):
  metrics = routing_metrics(routing, MASK)
  assert float(metrics["capacity_factor"]) == pytest.approx(rows / 3)
  assert float(metrics["assignments"]) == pytest.approx(3 / 3)


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_every_router_counts_the_rows_that_its_experts_compute_and_those_that_hold_a_token(name):
  """The same two numbers for slots, runs and mixtures, with and without padding."""
  router, tokens = make(name), random_tokens(4, 16)
  mask = jnp.arange(16) < jnp.array([16, 16, 8, 0])[:, None]
  output = route(router, tokens, training=True, mask=mask, key=jax.random.key(0))
  routing = jax.tree.map(np.asarray, output.routing)
  match routing:
    case SlotRouting():
      rows, used = routing.token.size, (routing.token < 64 // len(routing.token)).sum()
    case RaggedRouting():
      rows = used = routing.group_sizes.sum()
    case SoftRouting():
      rows, used = routing.dispatch[:, 0].size, routing.dispatch.sum()
  assert float(output.metrics["capacity_factor"]) == pytest.approx(rows / 40, rel=1e-5)
  assert float(output.metrics["assignments"]) == pytest.approx(used / 40, rel=1e-5)


def test_soft_routing_sends_every_token_everywhere():
  dispatch = jnp.full((1, 4, 2, 3), 0.25)
  metrics = routing_metrics(SoftRouting(dispatch, dispatch), MASK)
  np.testing.assert_allclose(metrics["load"], [0.5, 0.5])
  np.testing.assert_allclose(metrics["experts_per_token"], [0, 0, 1, 0, 0, 0])
  assert float(metrics["capacity_factor"]) == pytest.approx(6 / 3)


def test_five_experts_or_more_share_the_last_bin():
  token = jnp.broadcast_to(jnp.array([0])[None, None], (1, 7, 1))
  metrics = routing_metrics(SlotRouting(token, jnp.ones(token.shape)), jnp.ones((1, 2), bool))
  np.testing.assert_allclose(metrics["experts_per_token"], [0.5, 0, 0, 0, 0, 0.5])


def test_gate_entropy_is_in_nats_over_real_tokens():
  probs = jnp.stack([jnp.full(2, 0.5), jnp.array([1.0, 0.0]), jnp.full(2, 0.5), jnp.full(2, 0.5)])[None]
  assert float(routing_metrics(SLOTS, MASK, probs)["gate_entropy"]) == pytest.approx(2 / 3 * np.log(2))


def test_padding_alone_gives_zeros_not_nan():
  empty = SlotRouting(jnp.full((1, 2, 2), 4), jnp.zeros((1, 2, 2)))
  metrics = routing_metrics(empty, jnp.zeros((1, 4), bool), jnp.full((1, 4, 2), 0.5), asked=jnp.array(0))
  for name in ("load", "load_max", "load_cv", "dropped", "experts_per_token", "gate_entropy"):
    np.testing.assert_array_equal(metrics[name], 0, err_msg=name)


@pytest.mark.parametrize("name", ["expert_choice", "switch", "causal_gshard", "glam", "token_choice"])
def test_every_router_reports_the_same_metrics_in_float32(name):
  key = jax.random.key(0)
  metrics = route(make(name), random_tokens(2, 16), training=True, key=key).metrics
  shapes = {name: value.shape for name, value in metrics.items()}
  scalars = dict.fromkeys(["load_max", "load_cv", "dropped", "capacity_factor", "assignments", "gate_entropy"], ())
  assert shapes == {"load": (4,), "experts_per_token": (6,)} | scalars
  assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}


def test_where_real_tokens_ask_for_nothing_nothing_is_dropped():
  empty = SlotRouting(jnp.full((1, 2, 2), 4), jnp.zeros((1, 2, 2)))
  assert float(routing_metrics(empty, jnp.ones((1, 4), bool), asked=jnp.array(0))["dropped"]) == 0


def test_the_share_of_free_experts_is_of_all_assignments():
  """Six at the others, and two gates above 0."""
  taken = RaggedRouting(jnp.arange(8)[None] // 2, jnp.ones((1, 8)).at[0, 6:].set(0), jnp.array([[2, 4]]))
  free = jnp.zeros((1, 4, 3)).at[0, 3, 1].set(0.2).at[0, 1, 2].set(0.1)
  assert float(routing_metrics(taken, jnp.ones((1, 4), bool), free=free)["free_share"]) == pytest.approx(0.25)


def test_dropped_choices_of_a_token_choice_router_are_counted():
  router = make("token_choice", top_k=1, capacity_factor=1.0)
  router.kernel[...] = jnp.zeros_like(router.kernel[...])  # every token wants expert 0, which has 4 of 16 slots
  assert float(route(router, random_tokens(1, 16)).metrics["dropped"]) == pytest.approx(0.75)
