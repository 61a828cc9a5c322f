"""Costs of programs whose FLOPs are known in closed form, and of texts as the TPU compiler writes them."""

import jax
import jax.numpy as jnp
import pytest

from moe.planning import hlo
from moe.planning.collectives import KINDS
from moe.planning.costs import program_costs

N = 16
ONE = 2 * N**3
X = jnp.ones((N, N))


def flops(f, *arguments, optimized=True):
  lowered = jax.jit(f).lower(*arguments)
  module = hlo.parse(lowered.compile().as_text() if optimized else lowered.as_text("hlo"))
  return sum(cost.runs * cost.flops for cost in program_costs(module, 1).costs)


def layers(count):
  return lambda x, w: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=count)[0]


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_scan_of_products_counts_every_trip(count, optimized):
  assert flops(layers(count), X, X, optimized=optimized) == count * ONE


def test_a_scan_in_a_scan_multiplies():
  def f(x, w):
    return jax.lax.scan(lambda x, _: (layers(3)(x, w) @ w, None), x, length=5)[0]

  assert flops(f, X, X) == 5 * (3 + 1) * ONE


def test_a_backward_pass_costs_two_products_and_recomputation_one_more():
  def loss(f):
    return lambda w: f(X, w).sum()

  plain = flops(jax.grad(loss(layers(4))), X)
  body = jax.checkpoint(lambda x, w: jnp.tanh(x @ w), prevent_cse=False)
  recomputed = flops(jax.grad(loss(lambda x, w: jax.lax.scan(lambda x, _: (body(x, w), None), x, length=4)[0])), X)
  assert (plain, recomputed) == (4 * 3 * ONE, 4 * 4 * ONE)


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
  found = flops(lambda *a: jnp.einsum(formula, *a), *arrays)
  assert found == expected or (expected == 0 and found in (0, 2 * 5 * 7))


def test_convolutions_count_what_meets_an_input():
  image, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3))
  valid = flops(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), image, kernel)
  same = flops(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), image, kernel)
  strided = flops(lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID"), image, kernel)
  each = 2 * 2 * 3 * 5  # batch, features in and out, and the two operations
  assert valid == each * (6 * 3) ** 2
  assert same == each * (8 * 3 - 2) ** 2
  assert strided == each * (3 * 3) ** 2


def test_a_batched_product_as_the_tpu_compiler_writes_it_costs_the_same():
  """Sixteen experts as a dilated window: 256 pairs of an expert and its weights, of which 16 meet."""
  text = """
ENTRY %main (x: bf16[16,512,768], w: bf16[16,768,3072]) -> bf16[16,512,3072] {
  %x = bf16[16,512,768]{2,1,0} parameter(0)
  %w = bf16[16,768,3072]{2,1,0} parameter(1)
  ROOT %c = bf16[16,512,3072] convolution(%x, %w), window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0io->0bf
}
"""
  (cost,) = program_costs(hlo.parse(text), 1).costs
  assert cost.flops == 2 * 16 * 512 * 768 * 3072
  assert cost.bytes == 2 * (16 * 512 * 768 + 16 * 768 * 3072 + 16 * 512 * 3072)


TPU = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%starts (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[32,8]{1,0} all-gather(%p), replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
  ROOT %start = bf16[32,8]{1,0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%continues (p.1: bf16[4,8], q.1: f32[16,16]) -> f32[16,16] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %q.1 = f32[16,16]{1,0} parameter(1)
  %all-gather.2 = bf16[32,8]{1,0} all-gather(%p.1), replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
  ROOT %product = f32[16,16]{1,0} dot(%q.1, %q.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%scattered (p.2: f32[64]) -> f32[8] {
  %p.2 = f32[64]{0} parameter(0)
  %reduced = f32[64]{0} all-reduce(%p.2), replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[8]{0} dynamic-slice(%reduced, %zero), dynamic_slice_sizes={8}
}

%body (state: f32[16,16]) -> f32[16,16] {
  %state = f32[16,16]{1,0} parameter(0)
  ROOT %square = f32[16,16]{1,0} dot(%state, %state), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%condition (state.1: f32[16,16]) -> pred[] {
  %state.1 = f32[16,16]{1,0} parameter(0)
  ROOT %test = pred[] custom-call(%state.1), custom_call_target="Whatever"
}

ENTRY %main (x: bf16[4,8], y: f32[64], z: f32[16,16]) -> f32[16,16] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %z = f32[16,16]{1,0} parameter(2)
  %started = bf16[32,8]{1,0} fusion(%x), kind=kCustom, calls=%starts
  %meanwhile = f32[16,16]{1,0} fusion(%x, %z), calls=%continues, backend_config={"estimated_cycles":"700"}
  %shared = f32[8]{0} fusion(%y), kind=kCustom, calls=%scattered
  %sorted = f32[64]{0:S(1)} sort(%y), dimensions={0}, to_apply=%add
  %kernel = bf16[4,8]{1,0} custom-call(%x), backend_config={"cost_estimate":{"flops":"4096"}}
  %ahead = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%y)
  %there = f32[64]{0:S(1)} copy-done(%ahead)
  ROOT %loop = f32[16,16]{1,0} while(%meanwhile), condition=%condition, body=%body
}
"""


@pytest.fixture(scope="module")
def tpu():
  return program_costs(hlo.parse(TPU), 8)


def named(costs, name):
  (found,) = (cost for cost in costs.costs if cost.name == name)
  return found


def test_a_collective_carried_through_several_fusions_counts_once(tpu):
  gathers = [cost for cost in tpu.costs if cost.collective and cost.collective.kind == "all-gather"]
  (gather,) = gathers
  assert gather.collective.bytes == 32 * 8 * 2 and gather.collective.hidden


def test_the_product_beside_it_keeps_its_own_cycles(tpu):
  product = named(tpu, "meanwhile")
  assert (product.kind, product.cycles, product.flops) == ("matmul", 700, 2 * 16**3)


def test_an_all_reduce_of_which_only_a_shard_is_kept_is_a_reduce_scatter(tpu):
  scattered = named(tpu, "reduced")
  assert (scattered.collective.kind, scattered.collective.bytes) == ("reduce-scatter", 256)
  assert not scattered.collective.hidden


def test_an_instruction_without_estimate_still_counts(tpu):
  sort = named(tpu, "sorted")
  assert (sort.kind, sort.cycles, sort.touched, sort.bytes) == ("sort", None, 512, 256)


def test_a_kernel_has_the_flops_that_it_states(tpu):
  kernel = named(tpu, "kernel")
  assert (kernel.kind, kernel.flops, kernel.cycles) == ("matmul", 4096, None)


def test_a_copy_to_memory_on_the_chip_reads_main_memory_once(tpu):
  ahead = named(tpu, "ahead")
  assert (ahead.kind, ahead.bytes) == ("prefetch", 256)


def test_a_loop_of_unknown_length_counts_as_one_trip_and_says_so(tpu):
  square = named(tpu, "square")
  assert tpu.unknown_loops == 1
  assert (square.runs, square.known) == (1, False)
  assert all(cost.known for cost in tpu.costs if cost is not square)


@pytest.mark.parametrize(
  ("step", "exact"), [(lambda x: x / 2, True), (lambda x: x @ x / 2, False)], ids=["without", "with"]
)
def test_flops_are_exact_if_no_product_is_in_a_loop_of_unknown_length(step, exact):
  halved = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.max() > 1, step, x @ x))
  found = program_costs(hlo.parse(halved.lower(X).compile().as_text()), 1)
  assert (found.unknown_loops, found.exact) == (1, exact)


NAMES = """
%body (state: f32[8]) -> f32[8] {
  %state = f32[8]{0} parameter(0)
  %unread = f32[8]{0} negate(%state)
  ROOT %own = f32[8]{0} negate(%state), metadata={op_name="jit(f)/while/body/experts/neg"}
}

%condition (state.1: f32[8]) -> pred[] {
  %state.1 = f32[8]{0} parameter(0)
  ROOT %test = pred[] custom-call(%state.1), custom_call_target="Whatever"
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %alone = f32[8]{0} negate(%x)
  %argument = f32[8]{0} copy(%x), metadata={op_name="state.params['router']"}
  %view = f32[8]{0} bitcast(%argument)
  %near = f32[8]{0} negate(%view), metadata={op_name="jit(f)/attention/neg"}
  %far = f32[8]{0} add(%argument, %near), metadata={op_name="jit(f)/optimizer/add"}
  %into = f32[8]{0} copy(%far)
  ROOT %loop = f32[8]{0} while(%into), condition=%condition, body=%body, metadata={op_name="jit(f)/dispatch/while"}
}
"""


@pytest.mark.parametrize(
  ("instruction", "op_name"),
  [
    ("own", "jit(f)/while/body/experts/neg"),
    ("unread", "jit(f)/dispatch/while"),
    ("into", "jit(f)/dispatch/while"),
    ("argument", "jit(f)/optimizer/add"),
    ("alone", ""),
  ],
)
def test_a_name_is_the_instructions_own_or_its_nearest_readers_or_its_loops(instruction, op_name):
  assert named(program_costs(hlo.parse(NAMES), 1), instruction).op_name == op_name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "collective-permute"])
def test_the_end_of_an_asynchronous_collective_costs_nothing_more(kind):
  program = f"""HloModule asynchronous

ENTRY %main (x: f32[64]) -> f32[64] {{
  %x = f32[64]{{0}} parameter(0)
  %started = (f32[64]{{0}}, f32[64]{{0}}) {kind}-start(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %ended = f32[64]{{0}} {kind}-done(%started)
}}
"""
  (only,) = program_costs(hlo.parse(program), 8).costs
  assert only.kind == "collective" and only.collective.kind == kind and only.collective.hidden
