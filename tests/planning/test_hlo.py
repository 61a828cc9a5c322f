"""What is parsed from the text of a program."""

import pytest

from moe.planning import hlo

TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/somewhere/outer.py"
2 "/somewhere/inner.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused (p.0: bf16[8,128]) -> bf16[8,128] {
  %p.0 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %negate = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} negate(%p.0)
}

ENTRY %main (x: bf16[8,128]) -> (bf16[8,128], (u32[], s4[3])) {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %five = u32[] constant(5)
  %few = s4[3]{0} constant({1, 2, 3})
  %made = bf16[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="f" stack_frame_id=2}
  %inner = (u32[], s4[3]{0}) tuple(%five, %few)
  ROOT %out = (bf16[8,128]{1,0}, /*index=1*/(u32[], s4[3]{0})) tuple(%made, /*index=1*/%inner)
}
"""


@pytest.fixture
def module():
  return hlo.parse(TEXT)


def test_every_instruction_is_in_its_computation(module):
  assert list(module.computations) == ["fused", "main"]
  assert list(module.entry.instructions) == ["x", "five", "few", "made", "inner", "out"]
  assert module.entry.root.name == "out"
  assert module.computations["fused"].parameters[0].name == "p.0"


def test_shapes_are_those_of_all_leaves_with_their_memory_space(module):
  assert module.entry.instructions["made"].shapes == (hlo.Shape("bf16", (8, 128), space=1),)
  assert module.entry.root.shapes == (hlo.Shape("bf16", (8, 128)), hlo.Shape("u32", ()), hlo.Shape("s4", (3,)))


def test_bytes_are_rounded_up(module):
  assert [shape.bytes for shape in module.entry.root.shapes] == [2048, 4, 2]
  assert hlo.Shape("pred", (3,)).bytes == 3
  assert hlo.Shape("f8e4m3fn", (5,)).bytes == 5


def test_operands_are_names_and_literals_are_not(module):
  instructions = module.entry.instructions
  assert instructions["out"].operands == ("made", "inner")
  assert instructions["five"].operands == () and instructions["five"].literal == "5"


def test_called_computations_attributes_and_users(module):
  made = module.entry.instructions["made"]
  assert made.called == ("fused",) and made.attribute("kind") == "kLoop" and made.op_name == "f"
  assert module.entry.users["x"] == [(made, 0)]


def test_settings_over_several_lines_belong_to_one_instruction():
  text = """
ENTRY main {
  x = f32[8] parameter(0)
  k = f32[8] custom-call(x), backend_config={"cost_estimate": {
"flops":12
}, "more": 1}}
  ROOT y = f32[8] negate(k)
}
"""
  entry = hlo.parse(text).entry
  assert list(entry.instructions) == ["x", "k", "y"] and entry.root.operands == ("k",)
  assert '"flops":12}, "more": 1' in entry.instructions["k"].attributes


def test_a_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("nothing here")
