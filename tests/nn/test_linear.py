"""Products with normal parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.nn.linear import KernelInit, matmul, normal


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


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_matrices_begin_with_a_variance_of_their_scale_over_fan_in(scale):
  for distribution, furthest in (("normal", np.inf), ("truncated_normal", 2 / 0.8796)):
    drawn = KernelInit(scale, distribution)(nnx.Rngs(0), (400, 300), 400)[...] / (scale / 400) ** 0.5
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.01), distribution
    assert float(jnp.abs(drawn).max()) < furthest
  assert float(jnp.abs(drawn).max()) > 2.2


def test_a_scale_of_zero_is_refused():
  with pytest.raises(ConfigError, match=r"scale = 0\.0: expected more than 0"):
    KernelInit(scale=0.0)
