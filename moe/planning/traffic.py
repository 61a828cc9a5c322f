"""Bytes that an instruction reads from and writes to the device's main memory.

Arrays in memory on the chip (their layout names another space) cost nothing here. Of an operand that is only sliced or
gathered from, the slices count; of one that is updated in place, the update.
"""

from collections.abc import Callable

from moe.planning.hlo import Computation, Instruction, Module, Shape

# Bytes of arrays in the memories that count.
Measure = Callable[[tuple[Shape, ...]], int]

_VIEWS = ("bitcast", "reshape", "get-tuple-element", "tuple")


def main_memory(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def anywhere(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes)


def _results(instruction: Instruction) -> tuple[Shape, ...]:
  """The result, without the operands and counters that that of an asynchronous start also holds."""
  if not instruction.opcode.endswith("-start") or len(instruction.shapes) == 1:
    return instruction.shapes
  return instruction.shapes[:1] if instruction.opcode == "copy-start" else instruction.shapes[1:2]


def traffic(module: Module, instruction: Instruction, computation: Computation, measure: Measure = main_memory) -> int:
  """Bytes read and written by one run of an instruction; `measure` says which memory counts."""
  read = sum(_read(module, instruction, computation, index, measure) for index in range(len(instruction.operands)))
  return read + _written(module, instruction, computation, measure)


def _read(module: Module, reader: Instruction, computation: Computation, index: int, measure: Measure) -> int:
  """Bytes of operand `index` that `reader` reads."""
  operand = computation.instructions[reader.operands[index]]
  match reader.opcode:
    case "dynamic-slice" | "gather" | "slice" if index == 0:
      return anywhere(reader.shapes) if measure(operand.shapes) else 0
    case "slice-start":
      return anywhere(_results(reader)) if measure(operand.shapes) else 0
    case "dynamic-update-slice" | "scatter" if index == 0:
      return 0
    case "fusion":
      inner = module.computations[reader.called[0]]
      return _read_inside(module, inner.parameters[index], inner, measure)
  return measure(operand.shapes)


def _read_inside(module: Module, value: Instruction, computation: Computation, measure: Measure) -> int:
  """Bytes of a fusion's parameter that its instructions read: at most all of it."""
  whole, total = measure(value.shapes), 0
  for reader, index in computation.users[value.name]:
    # Layouts inside a fusion name no space, so a view of a value on the chip counts as on the chip too.
    if reader.opcode in _VIEWS:
      total += _read_inside(module, reader, computation, measure) if whole else 0
    else:
      total += _read(module, reader, computation, index, measure) if whole else 0
  return min(whole, total)


def _written(module: Module, instruction: Instruction, computation: Computation, measure: Measure) -> int:
  """Bytes of the result, or of the updated part if the result reuses the memory of an operand."""
  whole = measure(_results(instruction))
  match instruction.opcode:
    case "dynamic-update-slice":
      return min(whole, anywhere(computation.instructions[instruction.operands[1]].shapes))
    case "scatter":
      return min(whole, anywhere(computation.instructions[instruction.operands[2]].shapes))
    case "fusion":
      inner = module.computations[instruction.called[0]]
      return min(whole, _computed(module, inner.root, inner))
  return whole


def _computed(module: Module, value: Instruction, computation: Computation) -> int:
  """Bytes that a fusion computes for one of its results rather than passing them through, in any memory."""
  if value.opcode in ("bitcast", "reshape", "tuple"):
    return sum(_computed(module, computation.instructions[name], computation) for name in value.operands)
  if value.opcode == "parameter":
    return 0
  return _written(module, value, computation, anywhere)
