"""Ragged experts against each expert's own network on its own run of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import ragged
from moe.layers.activations import ACTIVATIONS

EXPERTS, WIDTH, HIDDEN = 3, 5, 4


def problem(sizes, scale, form, dtype=jnp.float32):
  """Arguments of `ragged_feed_forward` with a tail of 9 places that belong to no expert, one of them a real row."""
  random, sizes = np.random.default_rng(0), np.array(sizes) * scale
  tokens = random.normal(size=(6 * scale, WIDTH))
  rows = np.append(random.integers(0, 6 * scale, sizes.sum()), [2] + [6 * scale] * 8)
  weight = random.uniform(size=len(rows))
  ups = [random.normal(size=(EXPERTS, WIDTH, HIDDEN)) for _ in range(2 if form == "geglu" else 1)]
  down = random.normal(size=(EXPERTS, WIDTH, HIDDEN))
  cast = lambda a: jnp.asarray(a, dtype)  # noqa: E731
  return (
    cast(tokens),
    jnp.asarray(rows, jnp.int32),
    jnp.float32(weight),
    jnp.array(sizes),
    [*map(cast, ups)],
    cast(down),
  )


def plain(activation, tokens, rows, weight, sizes, ups, down):
  """The same, an expert at a time."""
  out, start = jnp.zeros_like(tokens), 0
  for expert, size in enumerate(sizes):
    run = slice(start, start + size)
    x = tokens[rows[run]]
    y = activation(*(x @ up[expert] for up in ups)) @ down[expert].T
    out, start = out.at[rows[run]].add(weight[run, None] * y), start + size
  return out


@pytest.mark.parametrize("form", ["gelu", "geglu"])
@pytest.mark.parametrize(("sizes", "scale"), [([0, 0, 0], 1), ([7, 0, 0], 1), ([0, 3, 4], 80), ([2, 2, 3], 128)])
@pytest.mark.parametrize("implementation", [ragged._blocked, ragged._grouped], ids=["blocked", "grouped"])
def test_values_and_gradients_are_those_of_each_expert_on_its_run(implementation, sizes, scale, form):
  activation, arguments = ACTIVATIONS[form], problem(sizes, scale, form)
  static = [int(size) for size in arguments[3]]
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=arguments[0].shape), jnp.float32)

  def of(function, sizes):
    def value(tokens, weight, ups, down):
      return jnp.vdot(function(activation, tokens, arguments[1], weight, sizes, ups, down), cotangent)

    tokens, _, weight, _, ups, down = arguments
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(tokens, weight, ups, down)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + np.abs(b).max())),
    of(implementation, arguments[3]),
    of(plain, static),
  )


def test_sums_of_bfloat16_experts_are_float32():
  """A thousand small contributions to one token would be lost one after the other in bfloat16."""
  tokens, rows = jnp.ones((2, 1), jnp.bfloat16), jnp.zeros(1024, jnp.int32)
  ones = jnp.ones((1, 1, 1), jnp.bfloat16)
  arguments = (tokens, rows, jnp.full(1024, 1 / 1024), jnp.array([1024]), [ones], ones)
  out = ragged.ragged_feed_forward(lambda x: x, *arguments)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out[:, 0], [1, 0])


def test_only_the_blocks_that_hold_assignments_are_computed():
  count = lambda sizes: int(ragged._Blocks(jnp.zeros(4096, jnp.int32), jnp.ones(4096), jnp.array(sizes)).count)  # noqa: E731
  assert count([0, 0, 0]) == 0
  assert count([1, 0, ragged._BLOCK]) == 2
  assert count([ragged._BLOCK + 1, 0, 1]) == 3
