"""Ragged experts against each expert's own network on its own run of rows."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from moe.experts.kernels import blocks as ragged_blocks
from moe.experts.kernels import pallas_gpu as grouped_gpu
from moe.experts.kernels import pallas_hopper as grouped_hopper
from moe.experts.kernels import pallas_tpu as grouped_tpu
from moe.experts.kernels import ragged
from moe.experts.kernels import tiles as ragged_tiles
from moe.experts.kernels.rows import rows_at_once
from moe.nn.activations import ACTIVATIONS
from moe.planning.traced import traced_flops
from tests.experts.ragged_cases import CASES, EXPERTS, assert_close, cotangent_of, expected, problem

KERNELS = {"tpu": grouped_tpu.KERNELS, "gpu": grouped_gpu.KERNELS}


@pytest.fixture
def interpreted(monkeypatch):
  """Kernels run on the CPU, and what they leave unwritten is NaN."""
  monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


def both_ways(implementation, activation, arguments, cotangent):
  """The output and the gradients by tokens, weight, ups, down and biases."""
  module, kernels = (ragged_tiles, [KERNELS[implementation]]) if implementation in KERNELS else (ragged_blocks, [])
  out = jax.jit(functools.partial(module.forward, *kernels, activation))(*arguments)
  return out, jax.jit(functools.partial(module.backward, *kernels, activation))(*arguments, cotangent)


@pytest.mark.parametrize(("sizes", "form"), CASES)
def test_values_and_gradients_are_those_of_each_expert_on_its_run(sizes, form):
  arguments = problem(sizes, form == "geglu")

  @jax.jit
  def both(tokens, rows, weight, sizes, *weights):
    def out(tokens, weight, *weights):
      return ragged.ragged_feed_forward(ACTIVATIONS[form], tokens, rows, weight, sizes, *weights)

    y, pull_back = jax.vjp(out, tokens, weight, *weights)
    return y, pull_back(cotangent_of(arguments))

  assert_close(both(*arguments), expected(ACTIVATIONS[form], arguments, cotangent_of(arguments)))


@pytest.mark.parametrize(("sizes", "form"), CASES)
@pytest.mark.parametrize("platform", KERNELS)
def test_kernels_give_the_same(interpreted, platform, sizes, form):
  arguments = problem(sizes, form == "geglu")
  found = both_ways(platform, ACTIVATIONS[form], arguments, cotangent_of(arguments))
  assert_close(found, expected(ACTIVATIONS[form], arguments, cotangent_of(arguments)))


@pytest.mark.parametrize("sizes", [(0, 0, 0), (100, 25, 125), (90, 0, 231), (126, 0, 0)])
def test_where_there_is_room_for_every_expert_a_part_at_a_time_gives_the_same(interpreted, sizes):
  """Parts have 125 rows: none, two that end with an expert's run, three that do not, one row in the second."""
  arguments = problem(sizes, gated=False, tokens=50)
  room = len(arguments[1])
  if room < EXPERTS * 50:  # as a router leaves it
    missing = EXPERTS * 50 - room
    arguments = arguments[0], *(jnp.pad(a, (0, missing)) for a in arguments[1:3]), *arguments[3:]
  assert rows_at_once(len(arguments[1]), 50, EXPERTS) == 125
  found = both_ways("tpu", jax.nn.gelu, arguments, cotangent_of(arguments))
  assert_close(found, expected(jax.nn.gelu, arguments, cotangent_of(arguments)))


def test_kernels_get_room_for_what_a_router_is_expected_to_assign():
  assert rows_at_once(room=64 * 8192, tokens=8192, num_experts=64) == 2.5 * 8192  # any number of experts
  assert rows_at_once(room=16 * 8192, tokens=8192, num_experts=64) == 16 * 8192  # always sixteen
  assert rows_at_once(room=2 * 8192, tokens=8192, num_experts=2) == 2 * 8192


@pytest.mark.parametrize("implementation", ["blocks", *KERNELS])
def test_sums_of_bfloat16_experts_are_float32(interpreted, implementation):
  """A thousand small contributions to one token would be lost one after the other in bfloat16."""
  tokens, rows = jnp.ones((1024, 16), jnp.bfloat16), jnp.zeros(1024, jnp.int32)
  one = jnp.zeros((1, 16, 16), jnp.bfloat16).at[0, 0, 0].set(1)
  arguments = (tokens, rows, jnp.full(1024, 1 / 1024), jnp.array([1024]), [one], one, [])
  out, _ = both_ways(implementation, lambda x: x, arguments, tokens)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out[:, 0], jnp.zeros(1024).at[0].set(1))


@pytest.mark.parametrize("implementation", ["blocks", *KERNELS])
def test_rows_that_belong_to_no_expert_may_hold_anything(interpreted, implementation):
  tokens, rows, weight, sizes, *weights = problem((30, 0, 40), gated=False)
  tokens, rows = tokens.at[149].set(jnp.nan), jnp.where(rows == 149, 0, rows).at[70:].set(149)
  arguments = (tokens, rows, weight.at[70:].set(jnp.nan), sizes, *weights)
  found = both_ways(implementation, jax.nn.gelu, arguments, cotangent_of(arguments).at[149].set(jnp.inf))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def lowered(platform, width, dtype=jnp.bfloat16, experts=EXPERTS, count=64, room=128):
  """The program for a platform, its gradients included."""
  matrices = jax.ShapeDtypeStruct((experts, width, 2 * width), dtype)
  tokens = jax.ShapeDtypeStruct((count, width), dtype)
  integers, weight = (jax.ShapeDtypeStruct((room,), dtype) for dtype in (jnp.int32, jnp.float32))

  def loss(tokens, weight, up, down, rows, sizes):
    return ragged.ragged_feed_forward(jax.nn.gelu, tokens, rows, weight, sizes[:experts], [up], down).sum()

  traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).trace(
    tokens, weight, matrices, matrices, integers, integers
  )
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
  ("platform", "width", "calls"),
  [("tpu", 128, 7), ("tpu", 24, 7), ("cuda", 128, 7), ("cuda", 24, 0), ("cpu", 128, 0), ("rocm", 128, 0)],
)
def test_platforms_with_kernels_use_them_for_all_seven_products(platform, width, calls):
  """A network's 2, its gradients' 4, and one that is recomputed; Triton cannot tile a width of 24."""
  program = lowered(platform, width)
  assert program.count("tpu_custom_call") + program.count("xla.gpu.triton") == calls
  assert "ragged_dot" not in program


@pytest.mark.parametrize(("room", "calls"), [(64 * 8192, 7), (63 * 8192, 0)])
def test_offsets_of_32_bits_suffice_for_the_parts_of_a_router_that_may_assign_every_expert(room, calls):
  """Half a million rows of 4,096 numbers are too many; not a part of them."""
  program = lowered("cuda", 2048, experts=64, count=8192, room=room)
  assert program.count("xla.gpu.triton") == calls


@pytest.mark.parametrize(
  ("capability", "width", "dtype", "calls"),
  [
    ((9, 0), 128, jnp.bfloat16, 7),
    ((9, 0), 128, jnp.float32, 0),
    ((9, 0), 64, jnp.bfloat16, 0),
    ((10, 0), 128, jnp.bfloat16, 0),
    ((8, 0), 128, jnp.bfloat16, 0),
  ],
)
def test_hopper_gpus_multiply_16_bit_numbers_by_kernels_of_their_own(monkeypatch, capability, width, dtype, calls):
  monkeypatch.setattr(grouped_gpu, "compute_capability", lambda: capability)
  program = lowered("cuda", width, dtype)
  assert program.count("custom_call @mosaic_gpu") == calls
  assert program.count("xla.gpu.triton") == 7 - calls


@pytest.mark.parametrize(("said", "expected"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx90a", (0, 0)), (None, (0, 0))])
def test_the_compute_capability_is_that_of_nvidia_gpus_alone(monkeypatch, said, expected):
  device = types.SimpleNamespace() if said is None else types.SimpleNamespace(compute_capability=said)
  monkeypatch.setattr(jax, "devices", lambda: [device])
  assert grouped_gpu.compute_capability() == expected


def test_hopper_kernels_state_the_flops_of_all_their_tiles():
  tiles = ragged_tiles.cut(jnp.array([130, 0, 5]), 256, 128)
  rows, matrices = 128 * len(tiles.expert), jnp.zeros((3, 128, 384), jnp.bfloat16)
  narrow, wide = (jnp.zeros((rows, width), jnp.bfloat16) for width in (128, 384))
  product, outer = grouped_hopper.KERNELS[:2]
  for jaxpr in (
    jax.make_jaxpr(lambda x, w: product(tiles, x, w, False, jnp.float32))(narrow, matrices),
    jax.make_jaxpr(lambda x, w: product(tiles, x, w, True, jnp.float32))(wide, matrices),
    jax.make_jaxpr(lambda a, b: outer(tiles, a, b, jnp.float32))(narrow, wide),
  ):
    assert traced_flops(jaxpr, "gpu").total() == 2 * rows * 128 * 384


def test_only_the_tiles_that_hold_assignments_are_counted_and_every_expert_has_one():
  def count(*sizes):
    return int(ragged_tiles.cut(jnp.array(sizes), 4096, 128).used)

  assert count(0, 0, 0) == 3
  assert count(1, 0, 128) == 3
  assert count(129, 0, 1) == 4
  assert count(4096, 0, 0) == 34


@pytest.mark.parametrize("sizes", [(0, 0, 0), (400, 0, 0), (1, 398, 1), (128, 128, 144), (129, 1, 257)])
def test_tiles_hold_every_assignment_once_and_beside_its_own_expert_only(sizes):
  tiles = ragged_tiles.cut(jnp.array(sizes), 400, 128)
  expert, assignment = np.repeat(tiles.expert, 128), np.asarray(tiles.assignment)
  held = assignment < 400
  np.testing.assert_array_equal(assignment[held], np.arange(sum(sizes)))
  np.testing.assert_array_equal(expert[held], np.repeat(np.arange(3), sizes))
  assert (np.diff(tiles.expert) >= 0).all()
  assert held.sum() == held[: int(tiles.used) * 128].sum()
  np.testing.assert_array_equal(np.asarray(tiles.expert)[tiles.first], np.arange(3))
