"""Bytes from and to main memory."""

import pytest

from moe.planning import hlo
from moe.planning.traffic import anywhere, traffic

FUSED = """
%fused (stack: f32[6,64], x: f32[64], i: s32[]) -> f32[6,64] {
  %stack = f32[6,64]{1,0} parameter(0)
  %x = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%row)
  %sum = f32[64]{0} add(%flat, %x)
  %new = f32[1,64]{1,0} bitcast(%sum)
  ROOT %updated = f32[6,64]{1,0} dynamic-update-slice(%stack, %new, %i, %zero)
}
"""
ROW = 64 * 4


def bytes_of(line, *, fused="", measure=None):
  """Of the last instruction of a program with the parameters s (a stack), v (a stack in memory on the chip), x, i."""
  text = f"""{fused}
ENTRY %main (s: f32[6,64], v: f32[6,64], x: f32[64], i: s32[]) -> f32[64] {{
  %s = f32[6,64]{{1,0}} parameter(0)
  %v = f32[6,64]{{1,0:S(1)}} parameter(1)
  %x = f32[64]{{0}} parameter(2)
  %i = s32[] parameter(3)
  ROOT {line}
}}
"""
  module = hlo.parse(text)
  options = {} if measure is None else {"measure": measure}
  return traffic(module, module.entry.root, module.entry, **options)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("%r = f32[64]{0} add(%x, %x)", 3 * ROW),
    ("%r = f32[64]{0:S(1)} negate(%x)", ROW),
    ("%r = f32[6,64]{1,0} negate(%v)", 6 * ROW),
    ("%r = f32[1,64]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,64}", 2 * ROW + 8),
    ("%r = f32[6,64]{1,0} dynamic-update-slice(%s, %x, %i, %i)", 2 * ROW + 8),
    ("%r = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%x)", ROW),
    ("%r = ((f32[6,64]{1,0}), f32[1,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%s), slice={[2:3], [0:64]}", ROW),
  ],
)
def test_one_instruction(line, expected):
  assert bytes_of(line) == expected


def test_a_fusion_that_updates_one_row_of_a_stack_moves_rows():
  """As in the body of a scan: counting the whole stack in every trip would be quadratic in the layers."""
  line = "%r = f32[6,64]{1,0} fusion(%s, %x, %i), kind=kLoop, calls=%fused"
  assert bytes_of(line, fused=FUSED) == 3 * ROW + 4


def test_memory_on_the_chip_counts_only_as_touched():
  line = "%r = f32[6,64]{1,0:S(1)} negate(%v)"
  assert bytes_of(line) == 0
  assert bytes_of(line, measure=anywhere) == 12 * ROW
