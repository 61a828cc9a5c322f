"""What the tests of smooth routers share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def assert_gradient(function: Callable, arguments, step: float = 1e-2, tolerance: float = 1e-3) -> None:
  """The gradient of a scalar function of a pytree agrees with central differences along three random directions."""
  value_and_grad, leaves = jax.jit(jax.value_and_grad(function)), jax.tree.leaves(arguments)
  gradient = value_and_grad(arguments)[1]
  assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient)), "a part has no gradient"
  for seed in range(3):
    random = np.random.default_rng(seed)
    along = [jnp.asarray(random.normal(size=leaf.shape) / np.sqrt(leaf.size), jnp.float32) for leaf in leaves]
    direction = jax.tree.unflatten(jax.tree.structure(arguments), along)
    higher, lower = (
      float(value_and_grad(jax.tree.map(lambda a, d, s=s: a + s * d, arguments, direction))[0]) for s in (step, -step)
    )
    expected = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), along, strict=True))
    np.testing.assert_allclose((higher - lower) / (2 * step), expected, rtol=1e-2, atol=tolerance)
