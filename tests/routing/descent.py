"""A router trained alone."""

from collections.abc import Callable

import jax
import optax
from flax import nnx

from moe.routing import Router


def descend(router: Router, loss: Callable[[Router, jax.Array], jax.Array], steps: int, learning_rate: float) -> Router:
  """The router after `steps` of Adam on `loss(router, key)`, each with a key of its own."""
  graph, params = nnx.split(router)
  optimizer = optax.adam(learning_rate)

  def body(carry, key):
    params, state = carry
    gradient = jax.grad(lambda params: loss(nnx.merge(graph, params), key))(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(0), steps)
  (params, _), _ = jax.jit(lambda params: jax.lax.scan(body, (params, optimizer.init(params)), keys))(params)
  return nnx.merge(graph, params)
