"""The k highest values along an axis, on any mesh."""

import jax
import jax.numpy as jnp


def highest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Values and int32 indices `[..., k]` of the k highest of `x [..., n]`, best first, ties to the lower index.

  Equal to `jax.lax.top_k`, which XLA shards on TPUs only: elsewhere it gathers the scores of all groups first. It does
  shard a sort, so that is used on a mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # Not `jax.lax.platform_dependent`: it leaves a conditional, whose collectives XLA's CPU backend does not order with
  # those outside, so that processes can wait for each other forever.
  return _chosen(x, k) if mesh.empty or _platform(mesh) == "tpu" else _sorted(x, k)


def are_highest(x: jax.Array, k: int) -> jax.Array:
  """Bool `[..., n]`: which of `x [..., n]` are the k highest, ties to the lower index."""
  return jax.nn.one_hot(highest(x, k)[1], x.shape[-1], dtype=bool).any(-2)


def _platform(mesh: jax.sharding.AbstractMesh) -> str | None:
  return None if mesh.abstract_device is None else mesh.abstract_device.platform


def _chosen(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  values, indices = jax.lax.top_k(x, k)
  return values, indices


def _sorted(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  indices = jnp.argsort(-jax.lax.stop_gradient(x), axis=-1, stable=True)[..., :k].astype(jnp.int32)
  return jnp.take_along_axis(x, indices, axis=-1), indices
