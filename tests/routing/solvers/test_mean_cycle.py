"""The cycle of largest mean against all cycles, and the prices that prove there is no better one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.solvers.mean_cycle import max_mean_cycle

find = jax.jit(max_mean_cycle)


def weights_of(seed: int, nodes: int):
  weight = np.random.default_rng(seed).normal(size=(nodes, nodes)) - seed / 4
  return np.float32(np.where(np.eye(nodes), 0, weight))


def best_mean(weight) -> float:
  """The largest mean over all simple cycles, one of a single node (mean 0) among them."""
  cycles = (c for length in range(1, len(weight) + 1) for c in itertools.permutations(range(len(weight)), length))
  return max(np.mean([weight[a, b] for a, b in zip(c, c[1:] + c[:1], strict=True)]) for c in cycles)


def test_the_closed_form_example():
  weight = jnp.array([[0, 3, 0], [-1, 0, 2], [0.4, 0, 0]])  # 0 -> 1 -> 2 -> 0 has mean 5.4 / 3
  found = find(weight)
  np.testing.assert_array_equal(found.following, [1, 2, 0])
  assert float(found.mean) == pytest.approx(1.8)


@pytest.mark.parametrize("seed", range(6))
def test_no_cycle_has_a_larger_mean_and_the_cycle_found_has_it(seed):
  weight = weights_of(seed, nodes=6)
  found = find(weight)
  assert float(found.mean) == pytest.approx(best_mean(weight), abs=1e-6)
  moved = np.flatnonzero(found.following != np.arange(6))
  assert (np.sort(found.following) == np.arange(6)).all()
  if moved.size:
    assert weight[moved, found.following[moved]].mean() == pytest.approx(float(found.mean), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_potentials_prove_it(seed):
  weight = weights_of(seed, nodes=6)
  found = find(weight)
  assert (found.potential[None] - found.potential[:, None] >= weight - found.mean - 1e-5).all()


def test_without_a_gain_nobody_moves():
  found = find(jnp.array([[0.0, 1.0, -9.0], [-1.5, 0.0, 2.0], [-9.0, -2.5, 0.0]]))
  assert float(found.mean) == 0
  np.testing.assert_array_equal(found.following, [0, 1, 2])


def test_missing_edges_are_not_used():
  weight = np.float32([[0, 5, -np.inf], [-np.inf, 0, 1], [-np.inf, 1, 0]])  # no way back to 0
  np.testing.assert_array_equal(find(weight).following, [0, 2, 1])


def test_one_node():
  found = find(jnp.zeros((1, 1)))
  assert (float(found.mean), found.following.tolist(), found.potential.tolist()) == (0, [0], [0])
