"""The second half of slot experts, whose backward pass recomputes the activation."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.experts.kernels.dropout import HiddenDropout, with_dropout


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate_and_project(
  activation: Callable, before: list[jax.Array], down: jax.Array, dropout: HiddenDropout | None
) -> jax.Array:
  """`activation(*before) @ down^T` for every expert, saving only `before` for the backward pass.

  Recomputing the activation costs a few elementwise operations and saves `[E, R, f]` buffers, the largest of all.
  """
  return jnp.einsum("erf,edf->erd", with_dropout(activation, dropout)(*before), down)


def _forward(activation, before, down, dropout):
  return activate_and_project(activation, before, down, dropout), (before, down, dropout)


def _backward(activation, kept, gradient):
  before, down, dropout = kept
  activation = with_dropout(activation, dropout)
  d_down = jnp.einsum("erd,erf->edf", gradient, activation(*before))
  # Without the barrier the compiler keeps activations or their derivatives alive: one or two more `[E, R, f]` buffers.
  before, gradient, d_down = jax.lax.optimization_barrier((before, gradient, d_down))
  _, pull_back = jax.vjp(activation, *before)
  return list(pull_back(jnp.einsum("erd,edf->erf", gradient, down))), d_down, None


activate_and_project.defvjp(_forward, _backward)
