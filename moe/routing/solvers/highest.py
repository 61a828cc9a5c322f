"""The k highest values along an axis, on any mesh."""

import jax
import jax.numpy as jnp


def highest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Values and int32 indices `[..., k]` of the k highest of `x [..., n]`, best first, ties to the lower index.

  Equal to `jax.lax.top_k`, which XLA shards on TPUs only: elsewhere it gathers the scores of all groups first. It does
  shard a sort, so that is used on a mesh of several devices, though on a CPU it takes ten times as long.
  """
  # Not `jax.lax.platform_dependent`: it leaves a conditional, whose collectives XLA's CPU backend does not order with
  # those outside, so that processes can wait for each other forever.
  return _sorted(x, k) if _is_split() else _chosen(x, k)


def are_highest(x: jax.Array, k: int) -> jax.Array:
  """Bool `[..., n]`: which of `x [..., n]` are the k highest, ties to the lower index."""
  return jax.nn.one_hot(highest(x, k)[1], x.shape[-1], dtype=bool).any(-2)


def _is_split() -> bool:
  """Whether arrays may lie over several devices that are no TPUs."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return False
  return mesh.abstract_device is None or mesh.abstract_device.platform != "tpu"


def _chosen(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  values, indices = jax.lax.top_k(x, k)
  return values, indices


def _sorted(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  indices = jnp.argsort(-jax.lax.stop_gradient(x), axis=-1, stable=True)[..., :k].astype(jnp.int32)
  return jnp.take_along_axis(x, indices, axis=-1), indices
