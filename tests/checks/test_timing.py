"""The dense twin that layers are measured against."""

import jax.numpy as jnp
import numpy as np

from moe.checks.timing import dense_program, forward_and_backward, measure_in_turns


def test_the_dense_twin_has_the_flops_of_three_passes_through_two_matrices():
  compiled, _ = dense_program(64, 32, 128)
  products = 3 * 2 * 64 * 32 * 128 * 2
  assert products <= compiled.cost_analysis()["flops"] < 1.1 * products


def test_forward_and_backward_gives_the_output_and_both_gradients():
  x = jnp.arange(3.0)
  y, (d_params, d_x) = forward_and_backward(lambda w, x: w * x)(jnp.float32(2), x, jnp.ones(3))
  np.testing.assert_array_equal(y, 2 * x)
  assert d_params == 3 and (d_x == 2).all()


def test_programs_take_turns_and_only_the_first_rounds_are_left_out():
  calls = []
  compiled = {name: (calls.append, (name,)) for name in "ab"}
  times = measure_in_turns(compiled, 3)
  assert calls == list("ab" * 6)
  assert {name: (len(each.work), len(each.wall)) for name, each in times.items()} == {"a": (3, 3), "b": (3, 3)}
