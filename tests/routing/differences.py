"""Gradients of routers against finite differences, over all their parameters at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.routing import SlotRouting
from tests.routing.naive import inputs_of


def assert_gradient_is_the_difference_quotient(router, tokens, *, step: float = 2e-3):
  """In training, of the auxiliary loss plus a random linear function of the weights, along a random direction.

  The function weighs experts and tokens, not slots, for which token is in which slot of an expert is no matter.
  """
  batch, length, _ = tokens.shape
  groups = router.config.groups(batch, length)
  inputs = inputs_of(tokens, groups, key=jax.random.key(0))
  graph, params, state = nnx.split(router, nnx.Param, ...)
  rng = np.random.default_rng(0)
  gain = jnp.asarray(rng.normal(size=(router.num_experts, groups.size + 1)), jnp.float32)
  direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)

  def value(params):
    output = nnx.merge(graph, params, state, copy=True)(inputs, training=True)
    token = output.routing.token
    by_expert = isinstance(output.routing, SlotRouting)
    gains = jnp.take_along_axis(gain[None], token, axis=-1) if by_expert else gain[0][token]
    return (output.routing.weight * gains).sum() + output.auxiliary_loss, jnp.sort(token, axis=-1)

  @jax.jit
  def both(params):
    moved = [jax.tree.map(lambda p, d, s=s: p + s * d, params, direction) for s in (step, -step)]
    (higher, choices), (lower, others) = map(value, moved)
    slope = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(value, has_aux=True)(params)[0], direction)
    return slope, (higher - lower) / (2 * step), choices, others

  slope, quotient, choices, others = both(params)
  np.testing.assert_array_equal(choices, others, err_msg="the step crosses a tie")
  assert all(float(each) != 0 for each in jax.tree.leaves(slope)), "a parameter without a gradient"
  assert float(sum(jax.tree.leaves(slope))) == pytest.approx(float(quotient), rel=0.01, abs=2e-3)
