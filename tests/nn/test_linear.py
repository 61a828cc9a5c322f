"""Products with normal parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.nn.linear import matmul, normal


def test_flattening_does_not_change_the_product():
  x = jax.random.normal(jax.random.key(0), (3, 5, 7))
  weight = normal(nnx.Rngs(1), (7, 4), 1.0)
  np.testing.assert_allclose(matmul(x, weight, jnp.float32), jnp.einsum("btd,df->btf", x, weight[...]), rtol=1e-5)


def test_product_is_in_the_compute_dtype_and_the_parameter_stays_float32():
  weight = normal(nnx.Rngs(1), (7, 4), 1.0)
  assert matmul(jnp.ones((2, 7)), weight, jnp.bfloat16).dtype == jnp.bfloat16
  assert weight[...].dtype == jnp.float32


def test_normal_has_the_given_standard_deviation():
  assert abs(normal(nnx.Rngs(0), (200, 200), 0.25)[...].std() - 0.25) < 0.005
