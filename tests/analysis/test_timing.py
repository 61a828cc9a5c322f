"""The dense twin that layers are measured against."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.analysis.timing import both_ways, dense_program, measure


def test_the_dense_twin_has_the_flops_of_three_passes_through_two_matrices():
  compiled, _ = dense_program(64, 32, 128)
  products = 3 * 2 * 64 * 32 * 128 * 2
  assert products <= compiled.cost_analysis()["flops"] < 1.1 * products


def test_both_ways_gives_the_output_and_both_gradients():
  x = jnp.arange(3.0)
  y, (d_params, d_x) = both_ways(lambda w, x: w * x)(jnp.float32(2), x, jnp.ones(3))
  np.testing.assert_array_equal(y, 2 * x)
  assert d_params == 3 and (d_x == 2).all()


def test_every_program_runs_as_often_as_asked():
  compiled = {name: (jax.jit(jnp.sin), (1.0,)) for name in "ab"}
  assert {name: len(seconds) for name, seconds in measure(compiled, 3).items()} == {"a": 3, "b": 3}
