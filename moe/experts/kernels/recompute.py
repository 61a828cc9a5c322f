"""The second half of slot experts, whose backward pass recomputes the activation."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate_and_project(activation: Callable, before: list[jax.Array], down: jax.Array) -> jax.Array:
  """`activation(*before) @ down^T` for every expert, saving only `before` for the backward pass.

  Recomputing the activation costs a few elementwise operations and saves `[E, R, f]` buffers, the largest of all.
  """
  return jnp.einsum("erf,edf->erd", activation(*before), down)


def _forward(activation, before, down):
  return activate_and_project(activation, before, down), (before, down)


def _backward(activation, kept, gradient):
  before, down = kept
  d_down = jnp.einsum("erd,erf->edf", gradient, activation(*before))
  # Without the barrier the compiler keeps activations or their derivatives alive: one or two more `[E, R, f]` buffers.
  before, gradient, d_down = jax.lax.optimization_barrier((before, gradient, d_down))
  _, pull_back = jax.vjp(activation, *before)
  return list(pull_back(jnp.einsum("erd,edf->erf", gradient, down))), d_down


activate_and_project.defvjp(_forward, _backward)
