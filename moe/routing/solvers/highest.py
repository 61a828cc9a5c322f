"""The k highest values along an axis, on any mesh."""

import functools

import jax
import jax.numpy as jnp


def highest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Values and int32 indices `[..., k]` of the k highest of `x [..., n]`, best first, ties to the lower index.

  Equal to `jax.lax.top_k`, which XLA shards on TPUs only: elsewhere it gathers the scores of all groups first. It does
  shard a sort, so that is used on a mesh.
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
