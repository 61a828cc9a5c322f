"""The measured layers compute what a training step computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.checks.layer_programs import LayerCase, LayerPrograms, measured_work, one_hot_masks
from moe.config import ConfigError, build
from moe.routing import RouterConfig, SlotRouting, SoftRouting


def case(masks: bool = False, **options) -> LayerCase:
  router = build(RouterConfig, {"name": "expert_choice", "capacity_factor": 2.0} | options, "router")
  return LayerCase(router, tokens=64, sequence=32, experts=4, d_model=16, d_ff=24, masks=masks)


def run(program):
  function, arguments = program
  return function(*arguments)


def test_masks_have_the_token_of_each_slot_and_nothing_for_an_empty_one():
  slots = SlotRouting(jnp.array([[[2, 0], [3, 1]]]), jnp.array([[[0.5, 2.0], [0.0, 3.0]]]))
  masks = one_hot_masks(slots, n=3)
  expected = np.zeros((1, 3, 2, 2))
  expected[0, 2, 0, 0] = expected[0, 0, 0, 1] = expected[0, 1, 1, 1] = 1
  np.testing.assert_array_equal(masks.dispatch, expected)
  np.testing.assert_array_equal(masks.combine, expected * np.array([[0.5, 2.0], [0.0, 3.0]]))


def test_by_masks_and_by_index_it_is_the_same_layer_with_the_same_gradients():
  by_index, by_masks = LayerPrograms(case()), LayerPrograms(case(masks=True))
  assert (by_index.routing, by_masks.routing) == (SlotRouting, SoftRouting)
  (y, _), (d_params, d_x), _ = run(by_index.whole())
  (masked_y, _), (masked_d_params, masked_d_x), _ = run(by_masks.whole())
  np.testing.assert_allclose(masked_y, y, atol=1e-5)
  np.testing.assert_allclose(masked_d_x, d_x, atol=1e-5)
  leaves, masked_leaves = jax.tree.leaves(d_params), jax.tree.leaves(masked_d_params)
  assert [leaf.shape for leaf in leaves] == [(4, 16, 24), (4, 16, 24), (16, 4)]
  for leaf, masked in zip(leaves, masked_leaves, strict=True):
    assert jnp.abs(leaf).max() > 1e-2
    np.testing.assert_allclose(masked, leaf, atol=1e-5)


@pytest.mark.parametrize(
  ("options", "budget", "done"),
  [
    ({"capacity_factor": 1.5}, 1.5, 1.5),
    ({"name": "token_choice", "top_k": 3, "capacity_factor": None}, 3, 3),
    ({"name": "switch", "capacity_factor": 1.25}, 1, 1.25),
    ({"name": "token_choice", "top_k": 2, "capacity_factor": 4.0}, 2, 4),
    ({"name": "soft_moe", "capacity_factor": None, "slots": 4}, 0.5, 0.5),
    ({"name": "hash", "capacity_factor": None}, 1, 1),
    ({"name": "adaptive_mixture", "capacity_factor": None}, 4, 4),
  ],
)
def test_the_budget_is_what_is_asked_for_and_the_work_what_is_computed(options, budget, done):
  found = case(**options)
  work = measured_work(LayerPrograms(found).whole(), found)
  assert (work.budget, work.done) == (pytest.approx(budget), pytest.approx(done))


def test_the_decision_has_gradients_for_the_router_only():
  _, (d_params, _), _ = run(LayerPrograms(case()).decision())
  flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(d_params)}
  moved = {path for path, leaf in flat.items() if jnp.abs(leaf).max() > 0}
  assert len(moved) == 1 and "router" in moved.pop()


def test_a_batch_that_cannot_be_divided_is_refused():
  with pytest.raises(ConfigError, match="tokens = 65: expected a multiple of 32"):
    dataclasses.replace(case(), tokens=65).check()
  with pytest.raises(ConfigError, match="group_size"):
    case(group_size=48).check()
