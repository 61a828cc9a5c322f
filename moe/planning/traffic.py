"""Bytes that an instruction reads from and writes to the device's main memory.

What lies in memory on the chip (a layout that names another space) costs nothing here. Of an operand that is only
sliced or gathered from, the slices count; of one that is updated in place, the update.
"""

from moe.planning.hlo import Computation, Instruction, Module, Shape

_VIEWS = ("bitcast", "reshape", "get-tuple-element", "tuple")


def main_memory(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes if shape.space == 0)


def anywhere(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes)


def _results(instruction: Instruction) -> tuple[Shape, ...]:
  """Without the operands and counters that the result of an asynchronous start holds beside them."""
  if not instruction.opcode.endswith("-start") or len(instruction.shapes) == 1:
    return instruction.shapes
  return instruction.shapes[:1] if instruction.opcode == "copy-start" else instruction.shapes[1:2]


def traffic(module: Module, instruction: Instruction, computation: Computation, measure=main_memory) -> int:
  """Bytes read and written by one run of an instruction; `measure` says which memory counts."""
  read = sum(_read(module, instruction, computation, place, measure) for place in range(len(instruction.operands)))
  return read + _written(module, instruction, computation, measure)


def _read(module: Module, reader: Instruction, computation: Computation, place: int, measure) -> int:
  """Bytes of operand `place` that `reader` looks at."""
  operand = computation.instructions[reader.operands[place]]
  match reader.opcode:
    case "dynamic-slice" | "gather" | "slice" if place == 0:
      return anywhere(reader.shapes) if measure(operand.shapes) else 0
    case "slice-start":
      return anywhere(_results(reader)) if measure(operand.shapes) else 0
    case "dynamic-update-slice" | "scatter" if place == 0:
      return 0
    case "fusion":
      inner = module.computations[reader.called[0]]
      return _read_inside(module, inner.parameters[place], inner, measure)
  return measure(operand.shapes)


def _read_inside(module: Module, value: Instruction, computation: Computation, measure) -> int:
  """Bytes of a fusion's parameter that its instructions look at: all of it as soon as one does."""
  whole, total = measure(value.shapes), 0
  for user, place in computation.users[value.name]:
    # Inside a fusion layouts name no space, so the view of a value on the chip is one as well.
    if user.opcode in _VIEWS:
      total += _read_inside(module, user, computation, measure) if whole else 0
    else:
      total += _read(module, user, computation, place, measure) if whole else 0
  return min(whole, total)


def _written(module: Module, instruction: Instruction, computation: Computation, measure) -> int:
  """Bytes of the result, or of the part that is new where it takes the place of an operand."""
  whole = measure(_results(instruction))
  match instruction.opcode:
    case "dynamic-update-slice":
      return min(whole, anywhere(computation.instructions[instruction.operands[1]].shapes))
    case "scatter":
      return min(whole, anywhere(computation.instructions[instruction.operands[2]].shapes))
    case "fusion":
      inner = module.computations[instruction.called[0]]
      return min(whole, _made(module, inner.root, inner))
  return whole


def _made(module: Module, value: Instruction, computation: Computation) -> int:
  """Bytes that a fusion's computation makes anew for one of its results, wherever they lie."""
  if value.opcode in ("bitcast", "reshape", "tuple"):
    return sum(_made(module, computation.instructions[name], computation) for name in value.operands)
  if value.opcode == "parameter":
    return 0
  return _written(module, value, computation, anywhere)
