"""How often a loop of an XLA program runs.

XLA's own cost analysis counts the body of a `while` once. Some backends annotate the loop with its trip count; the
TPU's does not, so it is derived from the loop itself: a counter that starts at a constant, grows by a constant and is
compared with a constant. A constant may come from outside, through tuples, copies and loops that pass it on unchanged.
"""

import dataclasses
import re
from typing import Optional

from moe.planning.hlo import Computation, Instruction, Module

# Instructions whose value is their operand's.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")


@dataclasses.dataclass(frozen=True)
class Scope:
  """A computation as one instruction runs it.

  Attributes:
    caller: the `while` (the computation is its body or condition), fusion or call; None for the entry.
    outer: the scope of the caller.
  """

  module: Module
  computation: Computation
  caller: Instruction | None = None
  outer: Optional["Scope"] = None

  def inside(self, caller: Instruction, name: str) -> "Scope":
    return Scope(self.module, self.module.computations[name], caller, self)


@dataclasses.dataclass(frozen=True)
class _Element:
  """Element `index` of the carry of the loop with the body or condition `scope`."""

  scope: Scope
  index: int


def trip_count(loop: Instruction, scope: Scope) -> int | None:
  """Trips of a `while` in `scope`; None if they depend on data."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  condition, body = scope.inside(loop, loop.attribute("condition").lstrip("%")), _body(loop, scope)
  test_scope, test = _through_calls(condition, condition.computation.root)
  direction = test.attribute("direction")
  if test.opcode != "compare" or direction not in ("LT", "GT"):
    return None
  counter, limit = test.operands if direction == "LT" else reversed(test.operands)
  element, end = _origin(test_scope, counter), _constant(test_scope, limit)
  if not isinstance(element, _Element) or end is None:
    return None
  start, step = _constant(scope, loop.operands[0], element.index), _step(body, element.index)
  return None if start is None or not step else max(0, -(-(end - start) // step))


def _body(loop: Instruction, scope: Scope) -> Scope:
  return scope.inside(loop, loop.attribute("body").lstrip("%"))


def _through_calls(scope: Scope, instruction: Instruction) -> tuple[Scope, Instruction]:
  """The instruction that computes the value of a fusion, a call or a copy."""
  while True:
    if instruction.opcode in ("fusion", "call"):
      scope = scope.inside(instruction, instruction.called[0])
      instruction = scope.computation.root
    elif instruction.opcode in _SAME:
      instruction = scope.computation.instructions[instruction.operands[0]]
    else:
      return scope, instruction


def _origin(scope: Scope, name: str, index: int | None = None) -> int | _Element | None:
  """Where a value (or element `index` of a tuple) comes from: a constant, the carry of its loop, or elsewhere: None."""
  instruction = scope.computation.instructions[name]
  match instruction.opcode:
    case "constant":
      return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    case "get-tuple-element":
      return _origin(scope, instruction.operands[0], int(instruction.attribute("index")))
    case "tuple" if index is not None:
      return _origin(scope, instruction.operands[index])
    case "parameter" if scope.caller is not None and scope.caller.opcode == "while":
      return _Element(scope, index)
    case "parameter" if scope.caller is not None:
      return _origin(scope.outer, scope.caller.operands[int(instruction.literal)], index)
    case opcode if opcode in _SAME:
      return _origin(scope, instruction.operands[0], index)
  return None


def _constant(scope: Scope, name: str, index: int | None = None) -> int | None:
  """The value, if it is the same in every trip of all loops around it."""
  found = _origin(scope, name, index)
  if not isinstance(found, _Element):
    return found
  loop, outer = found.scope.caller, found.scope.outer
  body = _body(loop, outer)
  passed_on = _origin(body, body.computation.root.name, found.index)
  if not isinstance(passed_on, _Element) or passed_on.index != found.index:
    return None
  return _constant(outer, loop.operands[0], found.index)


def _step(body: Scope, index: int) -> int | None:
  """What a trip adds to an element of the loop's carry."""
  root = body.computation.root
  if root.opcode != "tuple":
    return None
  scope, last = _through_calls(body, body.computation.instructions[root.operands[index]])
  if last.opcode != "add":
    return None
  for value, step in (last.operands, reversed(last.operands)):
    origin = _origin(scope, value)
    if isinstance(origin, _Element) and origin.index == index:
      return _constant(scope, step)
  return None
