"""The k highest values: both forms against a sort by hand, and which one is compiled where."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from moe.routing.solvers.highest import are_highest, highest


def by_hand(x: np.ndarray, k: int) -> np.ndarray:
  """The indices `[R, k]` for `x [R, n]`, by Python's sort of pairs."""
  return np.array([sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in x])


def device_mesh(devices: int) -> jax.sharding.Mesh:
  return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])


@pytest.fixture(params=["no mesh", "one device", "a sort"])
def inside(request, monkeypatch):
  """Runs a function as in a program without a mesh, on one of one device, and as on one of many."""
  if request.param == "no mesh":
    return lambda function, *args: jax.jit(function)(*args)
  if request.param == "a sort":
    monkeypatch.setattr("moe.routing.solvers.highest._is_split", lambda: True)

  def run(function, *args):
    with jax.set_mesh(device_mesh(1)):
      return jax.jit(function)(*args)

  return run


@pytest.mark.parametrize("k", [1, 3, 20])
def test_equals_a_sort_by_hand_with_ties_and_infinities(inside, k):
  x = np.random.default_rng(k).integers(-3, 4, (7, 20)).astype(np.float32)  # 7 values for 20 places: many ties
  x[x == -3] = -np.inf
  values, indices = inside(lambda x: highest(x, k), x)
  expected = by_hand(x, k)
  assert indices.dtype == np.int32
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis=-1))


def test_the_gradient_goes_to_the_chosen_values(inside):
  x = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
  gradient = inside(jax.grad(lambda x: (highest(x, 4)[0] * np.arange(1.0, 5.0)).sum()), x)
  expected = np.zeros_like(x)
  np.put_along_axis(expected, by_hand(x, 4), np.arange(1.0, 5.0), axis=-1)
  np.testing.assert_array_equal(gradient, expected)


def test_are_highest_marks_what_highest_names():
  x = np.random.default_rng(1).integers(0, 3, (5, 11)).astype(np.float32)
  expected = np.zeros(x.shape, bool)
  np.put_along_axis(expected, by_hand(x, 4), True, axis=-1)
  np.testing.assert_array_equal(are_highest(x, 4), expected)


def test_one_device_does_not_sort():
  """On a CPU a sort takes ten times as long as `top_k`, and a trainer of one device has a mesh too."""
  with jax.set_mesh(device_mesh(1)):
    program = jax.jit(lambda x: highest(x, 8)).lower(np.zeros((16, 512), np.float32)).as_text()
  assert "chlo.top_k" in program
  assert not re.search(r"stablehlo\.sort", program)
