"""Parses the text of an XLA program (HLO) as far as counting its costs needs: computations, instructions, shapes.

A program is a set of named computations; an instruction calls others by name (`calls=`, `body=`, `to_apply=`). The text
is what `jax.stages.Compiled.as_text()` and `Lowered.as_text("hlo")` return.
"""

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's type.

  Attributes:
    dtype: XLA's name, such as "bf16".
    dims: sizes of its axes.
    space: memory space of the layout; 0 is the device's main memory (HBM on a TPU), others are on the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Without the layout's padding."""
    return (self.elements * _bits(self.dtype) + 7) // 8


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  return int(re.search(r"\d+", dtype).group())  # s32, f8e4m3fn, u4


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    shapes: of the result; of a tuple, those of its leaves in order.
    operands: names of instructions of the same computation.
    literal: the text between the parentheses: a parameter's number, a constant's value.
    attributes: the text after them.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  def attribute(self, name: str) -> str | None:
    """The value of `name=...`: a word, or the text between braces."""
    found = re.search(rf"(?:^|[\s,]){name}=(?:\{{([^{{}}]*)\}}|([^\s,{{}}]+))", self.attributes)
    return None if found is None else (found[1] if found[1] is not None else found[2])

  def integers(self, name: str) -> tuple[int, ...]:
    """The numbers of an attribute, () if it is absent."""
    return tuple(map(int, re.findall(r"-?\d+", self.attribute(name) or "")))

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations run as part of it: a fusion's, a call's, a loop's body, a conditional's branches."""
    names = [self.attribute(name) for name in ("calls", "body", "to_apply", "true_computation", "false_computation")]
    names += (self.attribute("branch_computations") or "").split(",")
    return tuple(name.strip().lstrip("%") for name in names if name)

  @property
  def op_name(self) -> str:
    """The path of scopes and the primitive in JAX that it comes from, "" if the compiler made it without one."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in order."""

  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    return next(i for i in reversed(self.instructions.values()) if i.root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """By number."""
    return {int(i.literal): i for i in self.instructions.values() if i.opcode == "parameter"}

  @functools.cached_property
  def users(self) -> dict[str, list[tuple[Instruction, int]]]:
    """The readers of each instruction, and which of their operands it is."""
    found: dict[str, list[tuple[Instruction, int]]] = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for index, operand in enumerate(instruction.operands):
        found[operand].append((instruction, index))
    return found


@dataclasses.dataclass(frozen=True)
class Module:
  """A whole program: its computations by name, and the one that it starts with."""

  computations: dict[str, Computation]
  entry: Computation


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=\s]*)\](\{[^}]*\})?")


def parse(text: str) -> Module:
  """Parses a program.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry = None
  current: dict[str, Instruction] | None = None
  last: Instruction
  for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
    header = _HEADER.match(line)
    if header and not line.startswith("HloModule"):
      current = {}
      computations[header[2]] = Computation(header[2], current)
      entry = computations[header[2]] if header[1] else entry
    elif line == "}" or line.startswith("}, execution_thread"):
      current = None
    elif current is not None and (start := _LINE.match(line)):
      last = _instruction(start[2], line[start.end() :], bool(start[1]))
      current[last.name] = last
    elif current:
      # A kernel's settings may span several lines.
      current[last.name] = last = dataclasses.replace(last, attributes=last.attributes + line)
  if entry is None:
    raise ValueError("the text holds no HLO program: it has no ENTRY computation")
  return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
  """From `TYPE opcode(operands), attributes`."""
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  shapes = tuple(
    Shape(dtype, tuple(int(d) for d in re.findall(r"\d+", dims)), _space(layout))
    for dtype, dims, layout in _SHAPE.findall(text[:end])
  )
  opcode = _OPCODE.match(text, end)
  close = _closing(text, opcode.end() - 1)
  inside = text[opcode.end() : close]
  operands = () if opcode[1] in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
  if not operands and opcode[1] not in ("constant", "parameter"):
    # Before optimization, names are written without a percent sign.
    operands = tuple(re.findall(r"[A-Za-z_][\w.\-]*", re.sub(_SHAPE, "", inside)))
  return Instruction(name, opcode[1], shapes, operands, inside, text[close + 1 :].lstrip(", "), root)


def _space(layout: str) -> int:
  found = re.search(r"S\((\d+)\)", layout)
  return int(found[1]) if found else 0


def _closing(text: str, start: int) -> int:
  """The index of the parenthesis that closes the one at `start`."""
  depth = 0
  for index in range(start, len(text)):
    depth += (text[index] == "(") - (text[index] == ")")
    if depth == 0:
      return index
  raise ValueError(f"a parenthesis is never closed: {text[start : start + 80]}")
