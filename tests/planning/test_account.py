"""What a compiled step adds up to, for a text of which every number is known."""

import types

import jax
import numpy as np
import pytest

from moe.models.count import count_parameters
from moe.parallel.mesh import make_mesh
from moe.planning.account import make_plan, tokens_per_step
from moe.planning.advice import why_not
from moe.planning.compile import Memory, Program, argument_bytes, forward_flops
from moe.planning.page import config_name, draw, plan_lines, plan_table
from moe.planning.topology import GIB, Slice
from moe.training.experiment import load_config
from tests.training.tiny import tiny_mapping, tiny_stack

WHERE = Slice("v5e", (2, 2))
CHIP = WHERE.chip

TEXT = """
%product (p: bf16[512,512]) -> bf16[512,512] {
  %p = bf16[512,512]{1,0} parameter(0)
  ROOT %dot = bf16[512,512]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%body (state: (s32[], bf16[512,512])) -> (s32[], bf16[512,512]) {
  %state = (s32[], bf16[512,512]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), backend_config={"window_config":{"estimated_cycles":"0"}}
  %x = bf16[512,512]{1,0} get-tuple-element(%state), index=1
  %y = bf16[512,512]{1,0} fusion(%x), calls=%product, backend_config={"window_config":{"estimated_cycles":"1500"}},
    metadata={op_name="jit(f)/while/body/dispatch/experts/dot_general"}
  %summed = bf16[512,512]{1,0} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add,
    metadata={op_name="jit(f)/while/body/dispatch/psum"}
  %sorted = bf16[512,512]{1,0} sort(%summed), dimensions={0}, to_apply=%add,
    metadata={op_name="jit(f)/while/body/router/sort"}
  ROOT %out = (s32[], bf16[512,512]) tuple(%next, %sorted)
}

%condition (state.1: (s32[], bf16[512,512])) -> pred[] {
  %state.1 = (s32[], bf16[512,512]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(10)
  ROOT %test = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[512,512]) -> (s32[], bf16[512,512]) {
  %x.1 = bf16[512,512]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[512,512]) tuple(%zero, %x.1)
  ROOT %loop = (s32[], bf16[512,512]) while(%first), condition=%condition, body=%body
}
"""
SIZE = 512 * 512 * 2


def four_chips():
  devices = np.empty((2, 2, 1), object)
  for index in np.ndindex(2, 2):
    devices[(*index, 0)] = types.SimpleNamespace(coords=[*index, 0])
  shape = {"data": 2, "expert": 2, "model": 1}
  return types.SimpleNamespace(devices=devices, size=4, shape=shape, axis_names=tuple(shape))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  mapping = tiny_mapping(tmp_path_factory.mktemp("none") / "corpus")
  mapping["data"]["batch_size"] = 64
  return load_config(mapping)


@pytest.fixture(scope="module")
def plan(config):
  memory = Memory(arguments=3 * GIB, outputs=2 * GIB, aliased=2 * GIB, temporaries=GIB, peak=4 * GIB)
  return make_plan(config, WHERE, four_chips(), Program(TEXT, memory, 12.0), forward=(10**9, True))


def test_estimated_cycles_become_seconds_at_the_chips_clock(plan):
  assert plan.kinds["matmul"] == plan.estimated == pytest.approx(10 * 1500 / 1.5e9)


def test_what_is_not_estimated_counts_at_the_memorys_bandwidth_and_is_reported_apart(plan):
  expected = 10 * 2 * SIZE / CHIP.bandwidth
  assert plan.kinds["sort"] == pytest.approx(expected)
  assert plan.not_estimated == {"sort": {"instructions": 1, "bytes": 20 * SIZE, "seconds": pytest.approx(expected)}}


def test_a_custom_kernel_counts_its_bytes_and_then_its_products(config):
  said = 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"4000000000"}}}'
  kernel = f'%sorted = bf16[512,512]{{1,0}} custom-call(%summed), custom_call_target="tpu_custom_call", {said},'
  text = TEXT.replace("%sorted = bf16[512,512]{1,0} sort(%summed), dimensions={0}, to_apply=%add,", kernel)
  assert kernel in text
  memory = Memory(arguments=GIB, outputs=GIB, aliased=GIB, temporaries=GIB, peak=GIB)
  plan = make_plan(config, WHERE, four_chips(), Program(text, memory, 12.0), forward=(10**9, True))
  expected = 10 * (2 * SIZE / CHIP.bandwidth + 4e9 / CHIP.flops)
  assert plan.not_estimated["matmul"]["seconds"] == pytest.approx(expected)


def test_collectives_by_kind_and_axes(plan):
  (entry,) = plan.collectives
  assert (entry["kind"], entry["axes"], entry["runs"], entry["bytes"]) == ("all-reduce", "expert", 10, 10 * SIZE)
  assert entry["seconds"] == plan.kinds["collective"] == pytest.approx(10 * SIZE / CHIP.link)
  assert entry["hidden"] == 0


def test_parts_are_named_by_the_scopes_of_operations(plan):
  kinds = {"experts": "matmul", "dispatch and combine": "collective", "router": "sort"}
  assert plan.parts == {part: pytest.approx(plan.kinds[kind]) for part, kind in kinds.items()} | {"other": 0}
  assert plan.moe_share == pytest.approx(1)


def test_the_step_is_the_sum_and_tokens_follow(plan, config):
  assert plan.seconds == plan.least == pytest.approx(sum(plan.kinds.values()))
  assert sum(plan.parts.values()) == pytest.approx(plan.seconds)
  assert tokens_per_step(config) == plan.tokens == 64 * (16 + 16)
  assert plan.run_tokens == 12 * plan.tokens
  assert plan.days(None) == pytest.approx(12 * plan.seconds / 86_400)
  assert plan.days(1e9) == pytest.approx(1e9 / plan.tokens_per_second / 86_400)


def test_flops_and_utilization(plan):
  assert plan.flops == 10 * 2 * 512**3
  assert plan.forward_flops_per_token == 10**9 / plan.tokens
  assert plan.utilization == pytest.approx(3 * 10**9 / 4 / CHIP.flops / plan.seconds)


def test_the_lines_have_every_number_once(plan):
  text = "\n".join(plan_lines("tiny", plan, None))
  for wanted in (
    "tiny on v5e:2x2, 4 chips: data 2 x expert 2; compiled in 12 s",
    "4.00 of 15.75 GiB: arguments 3.00, outputs 2.00 (2.00 reuse the arguments), temporaries 1.00",
    "1 sort of 10.5 MB",
    "all-reduce         along expert: 10 runs, 5.2 MB",
  ):
    assert wanted in text
  assert "unknown" not in text


def test_the_table_has_one_row_per_config_and_the_figure_is_drawn(plan, tmp_path):
  rows = plan_table({"one": plan, "two": plan}, 1e12)
  assert len(rows) == 4 and "days for 1e+12 tokens" in rows[0]
  assert {row.count("|") for row in rows} == {rows[0].count("|")}
  draw({"one": plan, "two": plan}, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
  ("given", "names"),
  [
    (["a/tiny.py", "a/large.py"], ["tiny", "large"]),
    (["a/tiny.py", "b/tiny.py"], ["a/tiny.py", "b/tiny.py"]),
    (["a/tiny.py:1", "a/tiny.py:2"], ["a/tiny.py:1", "a/tiny.py:2"]),
    (["a/tiny.py --config.seed=1", "a/large.py --config.seed=1"], ["tiny", "large"]),
    (["a/tiny.py", "a/tiny.py --config.seed=1"], ["tiny", "tiny seed=1"]),
    (["a/tiny.py", "a/tiny.py --config.seed=1", "b/tiny.py"], ["a/tiny.py", "a/tiny.py seed=1", "b/tiny.py"]),
  ],
)
def test_every_config_has_a_name_of_its_own(given, names):
  arguments = [f"--config={one}".split() for one in given]
  assert [config_name(one, arguments) for one in arguments] == names


def test_forward_flops_of_a_dense_decoder_in_closed_form():
  layers, d, f, heads, width, vocab, rows, length = 3, 16, 32, 2, 8, 64, 4, 8
  config = load_config(
    {
      "seed": 0,
      "model": {
        **{"name": "decoder", "vocab_size": vocab, "d_model": d, "d_ff": f, "num_heads": heads},
        **{"d_head": width, "decoder": {"layers": layers}, "feed_forward": "geglu", "remat": "full"},
      },
      "data": {
        **{"source": "standard_library", "vocabulary": "bytes", "objective": "causal_lm", "inputs_length": 0},
        **{"targets_length": length, "batch_size": rows},
      },
      "optimizer": {},
      "train": {"steps": 10},
    }
  )
  tokens = rows * length
  block = 2 * tokens * (4 * d * heads * width + 3 * d * f) + 2 * 2 * rows * heads * length**2 * width
  table = 2 * 32 * heads * length**2  # the position biases, in 32 buckets, are looked up by a product
  bias = 2 * rows * heads * length**2  # broadcasting them over the rows is written as one too
  found, exact = forward_flops(config)
  assert exact
  assert found - 2 * tokens * d * vocab - layers * block - table in (0, layers * bias)


@pytest.mark.parametrize("router", ["base", "sinkhorn_base"])
def test_forward_flops_are_exact_though_a_routers_solver_runs_until_it_is_done(router, tmp_path):
  mapping = tiny_mapping(tmp_path / "corpus")
  mapping["model"]["encoder"] = tiny_stack({"name": router})
  assert forward_flops(load_config(mapping))[1]


def test_arguments_are_counted_without_compiling(tmp_path):
  mapping = tiny_mapping(tmp_path / "corpus")
  mapping["optimizer"]["name"] = "adamw"
  config = load_config(mapping)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  batch = 4 * (3 * 16 + 4 * 16) * 4  # rows, arrays of inputs and of targets, float32 and int32
  parameters = 4 * count_parameters(config.model, 2.0).total
  counters = argument_bytes(config, mesh) - batch - 3 * parameters
  assert 0 < counters <= 4 * 4


def test_the_refusal_of_a_step_too_large_names_what_would_help(config, monkeypatch):
  monkeypatch.setattr("moe.planning.advice.devices", lambda where: [None] * where.chips)
  monkeypatch.setattr("moe.planning.advice.make_mesh", lambda config, devices: mesh_of(len(devices)))
  monkeypatch.setattr("moe.planning.advice.argument_bytes", lambda config, mesh: 100 * GIB // mesh.size)
  said = why_not(config, WHERE, needed=40 * GIB, arguments=GIB)
  assert "a step needs 40.0 of 15.8 GiB per chip, of which parameters, statistics and batch are 1.0" in said
  assert 'model.remat="full"' in said and "\n" not in said
  said = why_not(config, WHERE, needed=100 * GIB, arguments=100 * GIB)
  assert "alone need 100.0 of 15.8 GiB" in said and "mesh.fsdp=True would reduce these to 25.0" in said
  assert "v5e:2x4 is the smallest larger slice" in said


def mesh_of(size):
  return types.SimpleNamespace(size=size, shape={"data": size, "expert": 1, "model": 1}, axis_names=())
