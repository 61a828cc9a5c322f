"""FLOPs of traced programs in closed form, and that the compiled program of a whole train step has as many."""

import jax
import jax.numpy as jnp
import pytest

from moe.experts.kernels.rows import Mark, mark
from moe.parallel.mesh import make_mesh
from moe.planning import hlo
from moe.planning.compile import traced_step
from moe.planning.costs import program_costs
from moe.planning.traced import traced_flops
from moe.training.experiment import load_config

N = 16
ONE = 2 * N**3
X = jnp.ones((N, N))


def traced(f, *arguments, platform="cpu"):
  return traced_flops(jax.jit(f).trace(*arguments).jaxpr, platform)


def layers(count, body=lambda x, w: jnp.tanh(x @ w)):
  return lambda x, w: jax.lax.scan(lambda x, _: (body(x, w), None), x, length=count)[0]


def doubled(count, x):
  """A loop whose trips depend on data."""
  return jax.lax.fori_loop(0, count, lambda _, x: x @ x, x)


def test_every_trip_of_a_scan_counts_and_a_scan_in_a_scan_multiplies():
  def f(x, w):
    return jax.lax.scan(lambda x, _: (layers(3)(x, w) @ w, None), x, length=5)[0]

  assert traced(f, X, X).total() == 5 * (3 + 1) * ONE


def test_a_backward_pass_costs_two_products_and_recomputation_one_more():
  def loss(f):
    return jax.grad(lambda w: f(X, w).sum())

  remat = jax.checkpoint(lambda x, w: jnp.tanh(x @ w), prevent_cse=False)
  assert traced(loss(layers(4)), X).total() == 4 * 3 * ONE
  assert traced(loss(layers(4, remat)), X).total() == 4 * 4 * ONE


@pytest.mark.parametrize(
  ("formula", "shapes", "expected"),
  [
    ("bij,bjk->bik", [(3, 4, 5), (3, 5, 6)], 2 * 3 * 4 * 5 * 6),
    ("erd,edf->erf", [(2, 8, 4), (2, 4, 3)], 2 * 2 * 8 * 4 * 3),
    ("i,j->ij", [(5,), (7,)], 0),  # no product: nothing is summed
    ("bqhw,bkhw->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)], 2 * 2 * 4 * 3 * 6 * 5),
  ],
)
def test_products_of_any_shape(formula, shapes, expected):
  arrays = [jnp.ones(shape) for shape in shapes]
  assert traced(lambda *a: jnp.einsum(formula, *a), *arrays).total() == expected


def test_a_conditional_counts_as_its_most_expensive_branch():
  def f(yes, x):
    return jax.lax.cond(yes, lambda x: x @ x, lambda x: x @ x @ x, x)

  assert traced(f, True, X).total() == 2 * ONE


@pytest.mark.parametrize(("platform", "products"), [("cpu", 3), ("tpu", 1), ("gpu", 2)])
def test_only_the_branch_of_the_platform_counts(platform, products):
  def f(x):
    cases = {"tpu": lambda x: x @ x, "cuda": lambda x: x @ x @ x, "default": lambda x: x @ x @ x @ x}
    return jax.lax.platform_dependent(x, **cases)

  assert traced(f, X, platform=platform).total() == products * ONE


def test_a_loop_that_depends_on_data_is_refused_unless_it_has_no_products_or_is_marked():
  def bisection(x):
    return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)

  def marked(count, x):
    with mark(N, 3):
      return doubled(count, x)

  assert traced(bisection, X).total() == 0
  ((place, flops),) = traced(marked, 5, X).items()
  assert (place.mark, flops) == (Mark(rows=N, padding=3), ONE)
  with pytest.raises(ValueError, match=r"^a loop whose trips depend on data has matrix products .* in /here$"):
    traced(jax.named_scope("here")(doubled), 5, X)


def test_marked_work_in_a_conditional_and_products_of_another_kind_are_refused():
  def either(yes, count, x):
    with mark(N, 0):
      return jax.lax.cond(yes, doubled, lambda count, x: x, count, x)

  with pytest.raises(ValueError, match=r"^a conditional that depends on data has"):
    traced(either, True, 5, X)
  with pytest.raises(ValueError, match=r"^conv_general_dilated has"):
    traced(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3)))


@pytest.mark.parametrize("router", ["glam", "dropless"])
def test_a_compiled_train_step_has_the_same_flops(router):
  """With each loop that depends on data as one trip, as the compiled program's costs count it."""
  tree = {
    "seed": 0,
    "model": {
      **{"name": "decoder", "vocab_size": 64, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_head": 8},
      "decoder": {"layers": 2, "moe": {"num_experts": 4, "router": {"name": router}}},
    },
    "data": {
      **{"source": "standard_library", "vocabulary": "bytes", "objective": "causal_lm", "inputs_length": 0},
      **{"targets_length": 8, "batch_size": 4},
    },
    "optimizer": {},
    "train": {"steps": 10},
  }
  step = traced_step(load_config(tree), make_mesh(devices=jax.devices()[:1]))
  compiled = program_costs(hlo.parse(step.lower().compile().as_text()), devices=1)
  assert traced_flops(step.jaxpr, "cpu").total() == compiled.flops
  assert (compiled.unknown_loops > 0) == (router == "dropless")
