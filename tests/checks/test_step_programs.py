"""The train steps that the benchmarks measure."""

import jax
import numpy as np
import pytest

from moe.checks.step_programs import RunningStep, random_batch, small_config

TOKENS, D, F, BLOCKS, VOCABULARY, LENGTH = 64, 64, 48, 2, 2048, 32
SIZES = {"d_model": D, "d_ff": F, "width": 2 * F, "layers": BLOCKS, "batch": TOKENS // LENGTH, "length": LENGTH}


def running(router=None):
  return RunningStep(small_config(**SIZES, experts=4 if router else 0, router=router), jax.devices()[:1])


def test_experts_and_their_dense_twin_compute_the_same_products():
  """Forward and twice backward: projections and scores of attention, both matrices of the networks, the logits."""
  attention, scores = 4 * 2 * TOKENS * D * D, 2 * 2 * TOKENS * LENGTH * D
  networks, logits = 2 * 2 * TOKENS * D * 2 * F, 2 * TOKENS * D * VOCABULARY
  biases = 2 * 2 * LENGTH**2 * 32  # of one head, looked up in 32 buckets by a product and learned by another
  products = 3 * (BLOCKS * (attention + scores + networks) + logits) + biases
  assert running().flops == pytest.approx(products, rel=1e-3)
  routing = 3 * 2 * TOKENS * D * 4
  sparse = running({"name": "expert_choice", "capacity_factor": 2, "group_size": LENGTH})
  assert sparse.flops == pytest.approx(products + routing, rel=1e-2)


def test_each_call_is_the_next_step():
  step = running()
  before = jax.tree.map(np.asarray, step.state.params)
  assert [int(step().step) for _ in range(3)] == [1, 2, 3]
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, step.state.params)
  assert all(jax.tree.leaves(moved))


def test_the_update_alone_does_not_change_the_run():
  step = running()
  update, arguments = step.update()
  params, _ = update(*arguments)
  assert any(np.any(new != old) for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(step.state.params)))
  assert int(step().step) == 1


def test_its_batch_has_no_padding():
  batch = random_batch(small_config(**SIZES))
  assert (batch["targets"] >= 2).all() and (batch["targets"] < VOCABULARY).all()
  assert (batch["targets_segments"] == 1).all() and (batch["loss_weights"] == 1).all()
  np.testing.assert_array_equal(batch["targets_positions"][1], np.arange(LENGTH))
