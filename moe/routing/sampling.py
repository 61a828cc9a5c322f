"""Choosing one expert of each token at random."""

import jax
import jax.numpy as jnp

from moe.routing.router import Router
from moe.routing.types import RouterInput


def training_key(router: Router, inputs: RouterInput) -> jax.Array:
  """The key of a router that draws random numbers in training.

  Raises:
    ValueError: there is none.
  """
  if inputs.key is None:
    raise ValueError(f"{type(router).__name__} draws random numbers in training, but RouterInput.key is None")
  return inputs.key


def sampled_expert(logits: jax.Array, key: jax.Array) -> jax.Array:
  """int32 `[...]`, a draw from softmax(logits) of `[..., E]`, by Gumbel's maximum; never one with logit -inf."""
  return jnp.argmax(logits + jax.random.gumbel(key, logits.shape), axis=-1).astype(jnp.int32)


def best_expert(logits: jax.Array) -> jax.Array:
  """int32 `[...]`, the expert with the highest of the logits `[..., E]`; ties to the lower index."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def one_hot(expert: jax.Array, num_experts: int) -> jax.Array:
  """Bool `[..., E]` of int32 `[...]`."""
  return expert[..., None] == jnp.arange(num_experts)


def nucleus(logits: jax.Array, mass: float) -> jax.Array:
  """The logits `[..., E]`, -inf outside the fewest most probable experts that together have probability >= `mass`.

  The most probable one is always kept; ties to the lower index. The gradient flows through the logits that are kept.
  """
  probs = jax.nn.softmax(jax.lax.stop_gradient(logits))
  order = jnp.argsort(-probs, axis=-1, stable=True)
  falling = jnp.take_along_axis(probs, order, axis=-1)
  kept = jnp.cumsum(falling, axis=-1) - falling < mass
  return jnp.where(jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1), logits, -jnp.inf)
