import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.nn.dropout import dropout, split
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


def test_dropout_zeroes_its_share_and_keeps_the_mean():
  x = jnp.ones(100_000)
  y = dropout(x, 0.3, jax.random.key(0))
  assert abs((y == 0).mean() - 0.3) < 0.01
  assert abs(y.mean() - 1) < 0.01
  np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)


def test_no_key_or_no_rate_means_no_dropout():
  x = jnp.arange(5.0)
  assert dropout(x, 0.3, None) is x
  assert dropout(x, 0.0, jax.random.key(0)) is x


def test_split_gives_different_keys_or_nones():
  assert split(None, 3) == [None] * 3
  keys = split(jax.random.key(0), 3)
  assert len({tuple(np.asarray(jax.random.key_data(key))) for key in keys}) == 3
