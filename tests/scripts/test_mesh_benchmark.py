"""Bytes that a train step sends: the closed form, and the count from the text of a compiled program."""

import types

import pytest

from moe.checks.step_programs import small_config
from moe.models.count import count_parameters
from scripts.benchmarks.mesh import measured_bytes, planned_bytes

PROGRAM = """HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carried: (s32[], f32[4,100])) -> (s32[], f32[4,100]) {
  %carried = (s32[], f32[4,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %x = f32[4,100]{1,0} get-tuple-element(%carried), index=1
  %there = f32[4,100]{1,0} all-to-all(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4,100]{1,0}) tuple(%next, %there)
}

%condition (carried.1: (s32[], f32[4,100])) -> pred[] {
  %carried.1 = (s32[], f32[4,100]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carried.1), index=0
  %end = s32[] constant(3)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (x.1: f32[4,100]) -> f32[4,100] {
  %x.1 = f32[4,100]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,100]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[4,100]{1,0}) while(%start), condition=%condition, body=%body
  %y = f32[4,100]{1,0} get-tuple-element(%loop), index=1
  %all = f32[8,100]{1,0} all-gather(%y), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  ROOT %sums = f32[4,100]{1,0} all-reduce(%y), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""
SIZE = 4 * 100 * 4


def config(**changes):
  router = {"name": "expert_choice", "capacity_factor": 2, "group_size": 32}
  sizes = {"d_model": 64, "d_ff": 48, "width": 96, "layers": 4, "batch": 16, "length": 32, "experts": 8}
  return small_config(**sizes | changes, router=router)


def mesh(data, expert):
  return types.SimpleNamespace(shape={"data": data, "expert": expert, "model": 1})


def test_what_a_device_keeps_is_not_sent_and_a_loop_counts_once_per_trip():
  assert measured_bytes(PROGRAM, 8) == {
    "all-to-all": 3 * SIZE * 3 / 4,
    "all-reduce": 2 * SIZE * 7 / 8,
    "all-gather": 2 * SIZE * 1 / 2,
    "other": 0,
  }


def test_a_loop_without_a_known_trip_count_is_an_error():
  program = PROGRAM.replace("%end = s32[] constant(3)", "%end = s32[] get-tuple-element(%carried.1), index=0")
  with pytest.raises(ValueError, match="trip count depends on data"):
    measured_bytes(program, 8)


def test_tokens_are_sent_to_the_other_devices_four_times_per_layer():
  slots_of_a_device = 2 * 16 * 32 / 8
  each_way = slots_of_a_device * 64 * 4
  moe_layers = 2
  assert planned_bytes(config(), mesh(2, 4))["all-to-all"] == 4 * moe_layers * each_way * 3 / 4
  assert planned_bytes(config(), mesh(8, 1))["all-to-all"] == 0


def test_gradients_of_experts_are_reduced_over_their_replicas_only():
  counts = count_parameters(config().model, 2)
  assert counts.experts == 2 * 8 * 2 * 64 * 48
  common = 4 * (counts.total - counts.experts)
  reduced = {shape: planned_bytes(config(), mesh(*shape))["all-reduce"] for shape in [(8, 1), (2, 4), (1, 8)]}
  assert reduced[8, 1] == pytest.approx(2 * 7 / 8 * (common + 4 * counts.experts))
  assert reduced[2, 4] == pytest.approx(2 * 7 / 8 * common + 2 * 1 / 2 * counts.experts / 4 * 4)
  assert reduced[1, 8] == pytest.approx(2 * 7 / 8 * common)
