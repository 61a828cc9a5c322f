"""Sampling one expert per token."""

from typing import Any

import jax
import jax.numpy as jnp

from moe.routing.router import Router
from moe.routing.types import RouterInput


def training_key(router: Router, inputs: RouterInput) -> jax.Array:
  """The key of a router that draws random numbers in training.

  Raises:
    ValueError: `inputs` has no key.
  """
  if inputs.key is None:
    raise ValueError(
      f"RouterInput.key = None: expected a key, as {type(router).__name__} draws random numbers in training"
    )
  return inputs.key


def training_noise(router: Any, inputs: RouterInput, shape: tuple[int, ...], *, training: bool) -> jax.Array | float:
  """Gaussian noise for logits, of standard deviation config.noise / E (Riquelme et al. 2021, section 2.2), or 0."""
  if not training or router.config.noise == 0:
    return 0.0
  return router.config.noise / router.num_experts * jax.random.normal(training_key(router, inputs), shape)


def sampled_expert(logits: jax.Array, key: jax.Array) -> jax.Array:
  """int32 `[...]`, a sample from softmax(logits) over `[..., E]`, by the Gumbel-max trick; never a logit of -inf."""
  return jnp.argmax(logits + jax.random.gumbel(key, logits.shape), axis=-1).astype(jnp.int32)


def best_expert(logits: jax.Array) -> jax.Array:
  """int32 `[...]`, the expert with the highest of the logits `[..., E]`; ties to the lower index."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def one_hot(expert: jax.Array, num_experts: int) -> jax.Array:
  """Bool `[..., E]` of int32 `[...]`."""
  return expert[..., None] == jnp.arange(num_experts)
