"""Dropless exchange: whatever the imbalance, nothing is dropped, and memory stays what balance needs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moe.experts.exchange.assignments import Assignments
from moe.experts.exchange.rounds import in_rounds
from moe.parallel.mesh import MeshConfig, make_mesh

DEVICES, EXPERTS, TOKENS, WIDTH = 8, 16, 12, 5
MESH = make_mesh(MeshConfig(expert=DEVICES))


def scaled(weights, tokens, rows, weight, sizes):
  """Experts that multiply by a matrix of their own."""
  expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(len(rows)), side="right")
  matrix = weights.at[expert].get(mode="fill", fill_value=0)
  x = tokens.at[rows].get(mode="fill", fill_value=0)
  y = weight[:, None] * jnp.einsum("ad,adw->aw", x, matrix)
  return jnp.zeros_like(tokens).at[rows].add(jnp.where(expert[:, None] < len(sizes), y, 0), mode="drop")


def exchanged(tokens, row, weight, sizes, weights, expected):
  def on_device(tokens, row, weight, sizes, weights):
    assigned = Assignments(row[0], weight[0], sizes[0], expected)
    return in_rounds(tokens[0], assigned, scaled, weights)[None]

  split = PartitionSpec("expert")
  mapped = jax.shard_map(on_device, mesh=MESH, in_specs=(split,) * 5, out_specs=split, check_vma=False)
  return mapped(tokens, row, weight, sizes, weights)


def directly(tokens, row, weight, sizes, weights):
  return jnp.stack([scaled(weights, *parts) for parts in zip(tokens, row, weight, sizes)])


def assignments(chosen):
  """`chosen` bool `[devices, N, E]` as rows by expert, padded to `N * E`."""
  row = np.full((DEVICES, TOKENS * EXPERTS), TOKENS, np.int32)
  for device, table in enumerate(chosen):
    token = np.nonzero(table.T)[1]
    row[device, : len(token)] = token
  return row, chosen.sum(1).astype(np.int32)


def cases():
  random = np.random.default_rng(0)
  everywhere = np.zeros((DEVICES, TOKENS, EXPERTS), bool)
  one = everywhere.copy()
  one[..., 7] = True
  return {
    "nothing": everywhere,
    "balanced": np.eye(EXPERTS, dtype=bool)[np.arange(DEVICES * TOKENS) % EXPERTS].reshape(DEVICES, TOKENS, EXPERTS),
    "all to one expert": one,
    "all to all experts": ~everywhere,
    "one device has all": np.where(np.arange(DEVICES)[:, None, None] == 3, ~everywhere, everywhere),
    "random": random.random((DEVICES, TOKENS, EXPERTS)) < random.random(EXPERTS),
  }


@pytest.mark.parametrize("expected", [3, TOKENS, TOKENS * EXPERTS])
@pytest.mark.parametrize("case", cases())
def test_everything_arrives_and_has_its_gradient(case, expected):
  row, sizes = assignments(cases()[case])
  keys = jax.random.split(jax.random.key(0), 4)
  tokens, cotangent = (jax.random.normal(key, (DEVICES, TOKENS, WIDTH)) for key in keys[:2])
  weight = jax.random.uniform(keys[2], row.shape)
  weights = jax.random.normal(keys[3], (EXPERTS, WIDTH, WIDTH))

  arguments = (tokens, row, weight, sizes, weights, cotangent)
  found, wanted = (both_ways(rows)(*arguments) for rows in (expected, None))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


@functools.cache
def both_ways(expected):
  """Outputs and gradients by a compiled exchange that expects so many rows, or directly: one program for all cases."""
  function = directly if expected is None else functools.partial(exchanged, expected=expected)

  def run(tokens, row, weight, sizes, weights, cotangent):
    y, pull_back = jax.vjp(lambda t, w, ws: function(t, row, w, sizes, ws), tokens, weight, weights)
    return y, pull_back(cotangent)

  return jax.jit(run)


def test_buffers_are_as_large_as_balance_needs_not_as_the_worst_case():
  row, sizes = assignments(cases()["balanced"])
  arguments = (
    jnp.zeros((DEVICES, TOKENS, WIDTH)),
    row,
    jnp.zeros(row.shape),
    sizes,
    jnp.zeros((EXPERTS, WIDTH, WIDTH)),
  )
  text = jax.jit(lambda *a: exchanged(*a, TOKENS)).lower(*arguments).as_text()
  quota = -(-int(1.25 * TOKENS) // DEVICES)
  assert f"tensor<{DEVICES}x{quota}x{WIDTH}xf32>" in text
  assert f"x{TOKENS * EXPERTS}x{WIDTH}xf32>" not in text
