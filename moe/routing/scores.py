"""Tokens to logits: the linear layer that most routers begin with."""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.routing.router import Site

KERNEL_STDDEV = 0.02


def router_kernel(site: Site, rngs: nnx.Rngs) -> nnx.Param:
  """Float32 `[d, E]`, normal with standard deviation 0.02, no bias: as in flaxformer, since the papers do not say."""
  return nnx.Param(KERNEL_STDDEV * jax.random.normal(rngs.params(), (site.d_model, site.num_experts), jnp.float32))


def router_bias(site: Site, rngs: nnx.Rngs) -> nnx.Param:
  """Float32 `[E]`, drawn as the kernel is: at 0, steps relative to a parameter's size, Adafactor's, hardly move it."""
  return nnx.Param(KERNEL_STDDEV * jax.random.normal(rngs.params(), (site.num_experts,), jnp.float32))


def scale_matrices(router: nnx.Module, factor: float) -> None:
  """Multiplies a router's initial matrices; thresholds, biases and state stay."""
  if factor != 1:
    params = nnx.state(router, nnx.Param)
    nnx.update(router, jax.tree.map(lambda leaf: factor * leaf if leaf.ndim >= 2 else leaf, params))


def router_logits(tokens: jax.Array, kernel: jax.Array) -> jax.Array:
  """Logits `[..., n, E]` of `tokens` `[..., n, d]`, in float32 whatever the tokens' dtype.

  At the highest precision, since accelerators otherwise round the factors to bfloat16 or TF32, and rounded scores can
  choose other experts: the same weights would route differently on another machine.
  """
  return jnp.matmul(tokens.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
