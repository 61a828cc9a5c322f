"""Attention where each device has some rows and some heads, of a length that kernels take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from moe.nn import attention_kernels
from moe.nn.attention import Attention, segment_mask
from moe.nn.relative_position import RelativeBias
from moe.parallel.mesh import ROW_AXES, MeshConfig, make_mesh

ROWS, LENGTH, HEADS, WIDTH = 8, 128, 4, 16


@functools.cache
def values_and_gradients(mesh):
  attention = Attention(32, HEADS, WIDTH, jnp.float32, rngs=nnx.Rngs(0))
  table = RelativeBias(HEADS, causal=True, buckets=8, max_distance=64, std=1.0, rngs=nnx.Rngs(1))
  graph, params = nnx.split((attention, table))
  x = jax.random.normal(jax.random.key(2), (ROWS, LENGTH, 32))
  segments = jnp.where(jnp.arange(LENGTH) < 100, 1 + jnp.arange(LENGTH) // 60, 0)
  mask = segment_mask(*[jnp.broadcast_to(segments, (ROWS, LENGTH))] * 2, causal=True)

  def loss(params, x):
    attention, table = nnx.merge(graph, params)
    y = attention(x, x, mask, table(LENGTH))
    return jnp.sum(jnp.sin(y)), y

  if mesh is not None:
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(ROW_AXES)))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
    gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  return nnx.to_pure_dict(gradients[0]), gradients[1], y


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (2, 1, 4)], ids=str)
def test_values_and_gradients_are_those_of_one_device(shape):
  assert attention_kernels.takes(LENGTH, LENGTH, WIDTH)
  found, expected = values_and_gradients(make_mesh(MeshConfig(*shape))), values_and_gradients(None)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-4), found, expected)
