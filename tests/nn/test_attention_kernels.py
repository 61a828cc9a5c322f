"""The TPU's kernels of attention, interpreted, against the logits written out."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from moe.nn import attention, attention_kernels
from moe.nn.relative_position import TILE
from moe.planning.topology import devices, parse_slice


@pytest.fixture
def interpreted(monkeypatch):
  """Runs kernels on the CPU."""
  monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


def problem(queries, keys, dtype, *, bias, width=16):
  """q, k, v, bias and mask of two rows with two heads, of which one query sees nothing; and a gradient."""

  def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / width**0.25

  q, k, v = (normal(seed, 2, 2, length, width).astype(dtype) for seed, length in enumerate((queries, keys, keys)))
  mask = jax.random.bernoulli(jax.random.key(3), 0.5, (2, 1, queries, keys)).at[1, 0, 7].set(False)
  d_out = normal(4, 2, 2, queries, width).astype(dtype)
  tiles = (queries + keys) // TILE - 1, TILE, TILE
  return (q, k, v, normal(5, 1, 2, *tiles) if bias else None, mask.astype(jnp.int8)), d_out


# Where keys are many, the queries of a row are cut into parts, whose gradients of keys and values are summed.
# Heads of 128 lie side by side in memory, narrower ones do not.
@pytest.mark.parametrize(
  ("queries", "keys", "width", "bias"), [(128, 256, 16, True), (256, 2048, 16, False), (256, 1024, 128, True)]
)
def test_kernels_equal_the_logits_written_out(interpreted, queries, keys, width, bias):
  arrays, d_out = problem(queries, keys, jnp.float32, bias=bias, width=width)
  expected, pull = jax.vjp(lambda *four: attention.weighted_values(*four, arrays[4]), *arrays[:4])
  np.testing.assert_allclose(attention_kernels.forward(*arrays), expected, rtol=2e-5, atol=2e-5)
  for found, gradient in zip(attention_kernels.gradients(*arrays, d_out), pull(d_out), strict=True):
    assert (found is None) == (gradient is None)
    if gradient is not None:
      np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_its_dtype_and_float32_sums(interpreted):
  arrays, d_out = problem(128, 2048, jnp.bfloat16, bias=True)
  exact = [None if array is None else array.astype(jnp.float32) for array in arrays[:4]]
  expected, pull = jax.vjp(lambda *four: attention.weighted_values(*four, arrays[4]), *exact)
  out = attention_kernels.forward(*arrays)
  found = attention_kernels.gradients(*arrays, d_out)
  assert [array.dtype for array in (out, *found)] == [*[jnp.bfloat16] * 4, jnp.float32]
  for one, right in zip((out, *found), (expected, *pull(d_out.astype(jnp.float32))), strict=True):
    error = np.abs(np.asarray(one, np.float32) - right).max() / np.abs(right).max()
    assert error < 0.02


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install -e '.[tpu]'"
)
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_the_tpus_compiler_takes_them(chip):
  device = jax.sharding.SingleDeviceSharding(devices(parse_slice(chip))[0])
  for queries, keys, dtype, bias in ((1024, 1024, "bfloat16", True), (2048, 2048, "float32", True)):
    q, k, gradient = (jax.ShapeDtypeStruct((2, 2, n, 64), dtype, sharding=device) for n in (queries, keys, queries))
    tiles = (queries + keys) // TILE - 1, TILE, TILE
    added = jax.ShapeDtypeStruct((1, 2, *tiles), jnp.float32, sharding=device) if bias else None
    mask = jax.ShapeDtypeStruct((2, 1, queries, keys), jnp.int8, sharding=device)
    forward = jax.jit(attention_kernels.forward).lower(q, k, k, added, mask).compile()
    backward = jax.jit(attention_kernels.gradients).lower(q, k, k, added, mask, gradient).compile()
    assert forward.as_text().count("tpu_custom_call") == 1
    assert backward.as_text().count("tpu_custom_call") == 2


@pytest.mark.parametrize(
  ("queries", "keys", "width", "taken"),
  [
    *((128, 128, 64, True), (1024, 1024, 256, True), (128, 2048, 128, True)),
    *((128, 2176, 64, False), (128, 2048, 192, False), (64, 128, 64, False), (128, 100, 64, False)),
  ],
)
def test_which_shapes_have_kernels(queries, keys, width, taken):
  assert attention_kernels.takes(queries, keys, width) == taken
