"""Problems for ragged experts, and what is expected of them: each expert's own network on its own run of rows."""

import jax
import jax.numpy as jnp
import numpy as np

EXPERTS, WIDTH, HIDDEN = 3, 32, 16

# How many assignments each expert has, and the activation: none at all; all to one expert; whole blocks and an empty
# expert; one row more and less than blocks and tiles have.
CASES = [((0, 0, 0), "gelu"), ((0, 0, 321), "gelu"), ((256, 0, 128), "gelu"), ((63, 65, 257), "geglu")]


def problem(sizes, gated, dtype=jnp.float32, tokens=150):
  """Arguments of `ragged_feed_forward` with a tail of 9 assignments to no expert, one of a real row."""
  random = np.random.default_rng(0)
  rows = np.append(random.integers(0, tokens, sum(sizes)), [2] + [tokens] * 8)
  shape = (EXPERTS, WIDTH, HIDDEN)
  x, *matrices = (jnp.asarray(random.normal(size=s), dtype) for s in [(tokens, WIDTH)] + [shape] * (3 if gated else 2))
  weight = jnp.float32(random.uniform(size=len(rows)))
  biases = [jnp.asarray(random.normal(size=(EXPERTS, HIDDEN)), dtype) for _ in matrices[1:]]
  return x, jnp.asarray(rows, jnp.int32), weight, jnp.array(sizes, jnp.int32), matrices[1:], matrices[0], biases


def one_by_one(activation, tokens, rows, weight, sizes, ups, down, biases):
  """`ragged_feed_forward`, an expert at a time; `sizes` are numbers."""
  out, start = jnp.zeros_like(tokens), 0
  for expert, size in enumerate(sizes):
    run = slice(start, start + size)
    before = (tokens[rows[run]] @ up[expert] + bias[expert] for up, bias in zip(ups, biases, strict=True))
    y = activation(*before) @ down[expert].T
    out, start = out.at[rows[run]].add(weight[run, None] * y), start + size
  return out


def expected(activation, arguments, cotangent):
  """The output, and the gradients by tokens, weight, ups, down and biases."""
  tokens, rows, weight, sizes, *weights = arguments

  def value(tokens, weight, *weights):
    return one_by_one(activation, tokens, rows, weight, [int(size) for size in sizes], *weights)

  out, pull_back = jax.vjp(value, tokens, weight, *weights)
  return out, pull_back(cotangent)


def cotangent_of(arguments):
  return jnp.asarray(np.random.default_rng(1).normal(size=arguments[0].shape), arguments[0].dtype)


def assert_close(found, reference):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + np.abs(b).max())), found, reference
  )
