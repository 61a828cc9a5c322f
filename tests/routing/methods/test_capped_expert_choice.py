"""Capped expert choice as a router: its solvers, its weights, its limits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.routing import RouterConfig
from moe.routing.scores import router_logits
from tests.routing.naive import make, of_sequences, random_tokens, route, routing_of

BATCH, LENGTH, EXPERTS = 2, 32, 4


def experts_per_token(**options) -> np.ndarray:
  """`[B, T]` of a router with strong preferences."""
  routing = routing_of(make("capped_expert_choice", **options), random_tokens(BATCH, LENGTH))
  return (~np.isnan(of_sequences(routing, BATCH, LENGTH))).sum(-1)


def test_the_hard_cap_is_never_exceeded_and_expert_choice_would_exceed_it():
  plain = routing_of(make("expert_choice"), random_tokens(BATCH, LENGTH))
  assert (~np.isnan(of_sequences(plain, BATCH, LENGTH))).sum(-1).max() > 2
  for cap in (2, 3):
    assert experts_per_token(cap=cap, solver="hard").max() <= cap


@pytest.mark.parametrize("solver", ["dual", "dykstra"])
def test_the_soft_caps_fill_every_expert(solver):
  counts = experts_per_token(cap=3, solver=solver)
  assert counts.sum() == 2 * BATCH * LENGTH


def test_the_dual_exceeds_the_cap_less_often_than_the_published_solver():
  over = {solver: (experts_per_token(cap=2, solver=solver) > 2).mean() for solver in ("dual", "dykstra")}
  assert over["dual"] < over["dykstra"]


def test_a_cap_of_all_experts_is_expert_choice():
  tokens = random_tokens(BATCH, LENGTH)
  plain = of_sequences(routing_of(make("expert_choice"), tokens), BATCH, LENGTH)
  for solver in ("dual", "hard"):
    capped = routing_of(make("capped_expert_choice", cap=EXPERTS, solver=solver), tokens)
    np.testing.assert_array_equal(of_sequences(capped, BATCH, LENGTH), plain)


def test_the_weights_are_the_scores_of_what_is_chosen():
  tokens, router = random_tokens(BATCH, LENGTH), make("capped_expert_choice", cap=2)
  weights = of_sequences(routing_of(router, tokens), BATCH, LENGTH)
  logits = np.asarray(router_logits(tokens, router.kernel[...]), np.float64)
  scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  taken = ~np.isnan(weights)
  np.testing.assert_allclose(weights[taken], scores[taken], rtol=1e-5)


@pytest.mark.parametrize("solver", ["dual", "dykstra", "hard"])
def test_padding_is_never_chosen(solver):
  mask = jnp.arange(LENGTH)[None] < jnp.array([[20], [5]])
  output = route(make("capped_expert_choice", solver=solver), random_tokens(BATCH, LENGTH), mask=mask)
  weights = of_sequences(output.routing, BATCH, LENGTH)
  assert np.isnan(weights[~np.asarray(mask)]).all() and not np.isnan(weights[np.asarray(mask)]).all()


def test_the_causal_twin_has_the_cap_and_as_many_experts_per_token():
  leaky, tokens = make("capped_expert_choice", num_experts=8, cap=3), random_tokens(8, 128)
  config = leaky.config.causal_twin()
  twin = make(config.name, num_experts=8, **dataclasses.asdict(config))
  free = make(config.name, num_experts=8, **(dataclasses.asdict(config) | {"cap": None}))
  twin.kernel[...] = free.kernel[...] = leaky.kernel[...]
  counts = [
    (~np.isnan(of_sequences(routing_of(router, tokens), 8, 128, num_experts=8))).sum(-1) for router in (twin, free)
  ]
  assert counts[0].max() == 3 and (counts[1] > 3).mean() > 0.05
  assert counts[0].mean() == pytest.approx(2, rel=0.1)
  assert (
    config.is_causal(training=False) and make("capped_expert_choice", softmax="tokens").config.causal_twin() is None
  )


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"capacity_factor": 2.0, "cap": 1}, "cap = 1: expected at least the capacity factor 2"),
    ({"capacity_factor": 1.0, "eval_capacity_factor": 4.0}, "cap = 3: expected at least the capacity factor 4"),
    ({"solver": "simplex"}, "solver = 'simplex': expected one of 'dual', 'dykstra', 'hard'"),
    ({"entropy": 0.0}, "entropy = 0.0: expected more than 0"),
    ({"iterations": -1}, "iterations = -1: expected at least 0"),
  ],
)
def test_options_that_make_no_sense_are_refused_by_name(options, said):
  with pytest.raises(ConfigError) as error:
    build(RouterConfig, {"name": "capped_expert_choice", **options}, "router")
  assert str(error.value).startswith(f"router.{said}")
