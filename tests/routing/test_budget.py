"""Experts that choose tokens take c / E of the real ones, however much padding lies beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.routing import RouterConfig
from moe.routing.capacity import expert_budget
from tests.routing.naive import make, random_tokens, route, routing_of

GROUP, REAL, EXPERTS = 64, 13, 8  # a fifth of the tokens are real; 2 * 13 / 8 = 3.25, so 3 for each expert
MASK = jnp.arange(GROUP)[None] % 5 == 0
ROUTERS = [
  ("expert_choice", {}),
  ("expert_choice", {"softmax": "tokens"}),
  ("capped_expert_choice", {"solver": "dual"}),
  ("capped_expert_choice", {"solver": "dykstra"}),
  ("capped_expert_choice", {"solver": "hard"}),
  ("strictly_balanced", {}),
]


def taken(name, mask=MASK, **options):
  """`[E]`, how many real tokens each expert takes in training, and how many slots it has."""
  router = make(name, num_experts=EXPERTS, **options)
  token = np.asarray(routing_of(router, random_tokens(1, GROUP), training=True, mask=mask).token[0])
  np.testing.assert_array_equal(np.pad(np.asarray(mask[0]), (0, 1))[token], token < GROUP, "padding was taken")
  return (token < GROUP).sum(1), token.shape[1]


@pytest.mark.parametrize(("name", "options"), ROUTERS)
def test_at_a_fifth_of_real_tokens_every_expert_takes_a_fifth_of_its_slots(name, options):
  counts, slots = taken(name, **options)
  assert slots == 16
  np.testing.assert_array_equal(counts, np.full(EXPERTS, 3))


@pytest.mark.parametrize(("name", "options"), ROUTERS[:4] + ROUTERS[-1:])
def test_counted_by_all_tokens_the_real_ones_get_as_many_experts_as_there_are(name, options):
  np.testing.assert_array_equal(taken(name, counted="all", **options)[0], np.full(EXPERTS, REAL))


@pytest.mark.parametrize(("name", "options"), ROUTERS)
def test_without_padding_both_ways_of_counting_are_the_same_bit_for_bit(name, options):
  both = [make(name, num_experts=EXPERTS, counted=counted, **options) for counted in ("real", "all")]
  routings = [routing_of(router, random_tokens(1, GROUP), training=True) for router in both]
  jax.tree.map(np.testing.assert_array_equal, *routings)


def test_shares_of_the_relaxed_choice_sum_to_the_budget_of_the_real_tokens():
  router = make("soft_expert_choice", num_experts=EXPERTS, gate="one")
  for training in (True, False):
    routing = route(router, random_tokens(1, GROUP), training=training, mask=MASK).routing
    np.testing.assert_allclose(routing.weight.sum(-1), np.full((1, EXPERTS), 3.0), rtol=1e-4)


def test_balanced_centroids_take_their_part_of_the_real_tokens():
  router = make("k_means", num_experts=EXPERTS, balanced=True)
  routing = routing_of(router, random_tokens(1, GROUP), mask=MASK)
  np.testing.assert_array_equal(routing.group_sizes, np.full((1, EXPERTS), 2))  # 13 / 8 = 1.6


def test_the_budget_is_rounded_half_up_and_one_at_least_in_evaluation():
  mask = jnp.arange(64) < jnp.array([0, 1, 2, 6, 10, 64])[:, None]
  k, training = expert_budget(mask, 8, 2.0, "real", training=True)
  np.testing.assert_array_equal(training, [0, 0, 1, 2, 3, 16])
  np.testing.assert_array_equal(expert_budget(mask, 8, 2.0, "real", training=False)[1], [1, 1, 1, 2, 3, 16])
  assert k == 16
  assert expert_budget(mask, 8, 2.0, "all", training=True) == (16, 16)


@pytest.mark.parametrize("solver", ["dual", "dykstra", "hard"])
def test_in_a_group_of_padding_nothing_is_taken(solver):
  """The solvers take logarithms of the budget, which is 0 here."""
  np.testing.assert_array_equal(taken("capped_expert_choice", MASK & False, solver=solver)[0], np.zeros(EXPERTS))


def test_only_real_and_all_tokens_can_be_counted():
  with pytest.raises(ConfigError, match=r"config\.counted = 'padding': expected one of 'real', 'all'"):
    build(RouterConfig, {"name": "expert_choice", "counted": "padding"})
