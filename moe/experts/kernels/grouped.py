"""A feed-forward network and its gradients, written with two grouped matrix products.

Rows may belong to one expert or to many: only the products know which.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def output(
  product: Callable, activation: Callable, x: jax.Array, weight: jax.Array, ups: list[jax.Array], down: jax.Array
) -> jax.Array:
  """float32 `[R, d]`: `weight * activation(x @ ups) @ down^T` for the rows `x [R, d]`.

  Args:
    product: maps `(rows, matrices, transposed, dtype)` to the rows times the matrices of their experts.
    activation: applied to the products with `ups`.
    x: `[R, d]`.
    weight: float32 `[R]`.
    ups: one or two matrices `[d, f]`, or `[E, d, f]` if `product` works on many experts.
    down: one such matrix.
  """
  hidden = activation(*(product(x, up, False, x.dtype) for up in ups))
  return weight[:, None] * product(hidden, down, True, jnp.float32)


def with_biases(activation: Callable, biases: list[jax.Array]) -> Callable:
  """`activation` of its arguments `[R, f]` with a bias added to each, `[f]` or `[R, f]`; as it is without any."""
  return (lambda *before: activation(*map(jnp.add, before, biases))) if biases else activation


def gradients(
  product: Callable,
  outer: Callable,
  activation: Callable,
  x: jax.Array,
  gradient: jax.Array,
  weight: jax.Array,
  ups: list[jax.Array],
  down: jax.Array,
) -> tuple[jax.Array, jax.Array, list[jax.Array], jax.Array, list[jax.Array]]:
  """Gradients of `output` with respect to x (float32 `[R, d]`), weight (float32 `[R]`), ups, down, and the products.

  `gradient` is that of the output, `[R, d]`; `outer` maps a `[R, d]` and b `[R, f]` to the sum over each expert's rows
  of their outer products, `[d, f]` or `[E, d, f]`; the other arguments are as in `output`.
  """
  hidden, pull_back = jax.vjp(activation, *(product(x, up, False, x.dtype) for up in ups))
  d_hidden = product(gradient, down, False, x.dtype)
  d_weight = (d_hidden * hidden).sum(-1, dtype=jnp.float32)
  scale = weight[:, None].astype(x.dtype)
  before = pull_back(d_hidden * scale)
  d_x = sum(product(b, up, True, jnp.float32) for b, up in zip(before, ups, strict=True))
  return d_x, d_weight, [outer(x, b) for b in before], outer(gradient * scale, hidden), list(before)
