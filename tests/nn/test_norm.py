import jax
import jax.numpy as jnp
import numpy as np

from moe.nn.norm import RMSNorm


def test_output_has_root_mean_square_one():
  x = 7 * jax.random.normal(jax.random.key(0), (4, 64)) + 3
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(RMSNorm(64)(x) ** 2, -1)), 1, rtol=1e-5)


def test_mean_is_not_subtracted():
  x = jnp.full((1, 16), 5.0)
  np.testing.assert_allclose(RMSNorm(16)(x), 1, rtol=1e-5)


def test_scale_multiplies_each_channel():
  norm, x = RMSNorm(8), jax.random.normal(jax.random.key(0), (3, 8))
  before = norm(x)
  norm.scale[...] = jnp.arange(8.0)
  np.testing.assert_allclose(norm(x), before * jnp.arange(8.0), rtol=1e-6)


def test_statistics_of_bfloat16_are_float32():
  """300^2 times 1024 channels, summed in bfloat16, stops growing long before the end."""
  x = jnp.full((1, 1024), 300, jnp.bfloat16)
  y = RMSNorm(1024)(x)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(y, jnp.ones_like(y))


def test_zero_stays_zero_with_finite_gradient():
  norm = RMSNorm(4)
  gradient = jax.grad(lambda x: norm(x).sum())(jnp.zeros(4))
  assert jnp.isfinite(gradient).all()
