"""The k highest of an axis, on any mesh."""

import functools

import jax
import jax.numpy as jnp


def highest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Values and int32 indices `[..., k]` of the k highest of `x [..., n]`, best first, ties to the lower index.

  That is `jax.lax.top_k`. Off TPUs, though, XLA does not divide that one over devices: it gathers the scores of all
  groups first. A sort it does divide, so on a mesh it is a sort there.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return _chosen(x, k)
  on_tpu, elsewhere = (functools.partial(function, k=k) for function in (_chosen, _sorted))
  return jax.lax.platform_dependent(x, tpu=on_tpu, default=elsewhere)


def _chosen(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  values, indices = jax.lax.top_k(x, k)
  return values, indices


def _sorted(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  indices = jnp.argsort(-jax.lax.stop_gradient(x), axis=-1, stable=True)[..., :k].astype(jnp.int32)
  return jnp.take_along_axis(x, indices, axis=-1), indices
