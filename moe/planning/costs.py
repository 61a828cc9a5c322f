"""What every instruction of a compiled program costs, and how often it runs, as a flat list.

Only instructions that are launched count: those of the entry computation, of loops and called computations, and of all
branches of a conditional. An instruction inside a fusion belongs to the fusion.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from moe.planning.collectives import KINDS as COLLECTIVES
from moe.planning.collectives import Collective, read_collective
from moe.planning.hlo import Computation, Instruction, Module
from moe.planning.loops import Scope, trip_count
from moe.planning.products import product_flops
from moe.planning.traffic import anywhere, traffic

KINDS = ("matmul", "collective", "gather/scatter", "sort", "other")

_FREE = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
  *("copy-done", "slice-done", "async-done", "async-update", "opt-barrier", "domain"),
  *("send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES)),
)
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
# How many instructions away a reader may be that gives its name to an instruction without one.
_FARTHEST_READER = 3


@dataclasses.dataclass(frozen=True)
class Cost:
  """One instruction.

  Attributes:
    name: of the instruction.
    opcode: of the instruction.
    kind: one of `KINDS`, or "prefetch": a copy between memories that overlaps with computation.
    flops: of matrix products, per run.
    bytes: from and to main memory, per run.
    touched: bytes of operands and results in any memory, per run.
    cycles: the compiler's estimate of one run; None if there is none.
    runs: how often it runs in one call of the program.
    known: False inside a loop whose trip count depends on data: such a loop counts as one trip.
    op_name: the JAX operation it comes from. If the compiler made it without one: that of the nearest reader of its
      result, else that of the loop or call it belongs to; "" if these have none either.
    collective: what it sends to other devices.
  """

  name: str
  opcode: str
  kind: str
  flops: int
  bytes: int
  touched: int
  cycles: int | None
  runs: int
  known: bool
  op_name: str
  collective: Collective | None = None


@dataclasses.dataclass
class Costs:
  """All costs of a program, and the number of its loops whose trip count depends on data (counted as one trip)."""

  costs: list[Cost]
  unknown_loops: int

  @property
  def flops(self) -> int:
    """Of all matrix products."""
    return sum(cost.runs * cost.flops for cost in self.costs)

  @property
  def exact(self) -> bool:
    """Whether `flops` is: no product is in a loop whose trip count depends on data.

    Others have such loops too, those of the routers' solvers, and add nothing however often they run.
    """
    return all(cost.known for cost in self.costs if cost.flops)


def program_costs(module: Module, devices: int) -> Costs:
  """The costs of a program that runs on `devices` devices."""
  found = Costs([], 0)
  _visit(Scope(module, module.entry), 1, devices, found)
  return found


def _visit(scope: Scope, runs: int, devices: int, found: Costs, op_name: str = "", known: bool = True) -> None:
  """Adds the costs of a computation that runs `runs` times, an estimate unless `known`.

  `op_name` is that of the loop or call it belongs to.
  """
  module, computation = scope.module, scope.computation
  for instruction in computation.instructions.values():
    origin = _origin(instruction, computation) or op_name
    match instruction.opcode:
      case "while":
        trips = trip_count(instruction, scope)
        found.unknown_loops += trips is None
        body = scope.inside(instruction, instruction.attribute("body").lstrip("%"))
        _visit(body, runs * (1 if trips is None else trips), devices, found, origin, known and trips is not None)
      case "call" | "conditional" | "async-start":
        for name in instruction.called:
          _visit(scope.inside(instruction, name), runs, devices, found, origin, known)
      case opcode if opcode in _FREE or (instruction.attribute("custom_call_target") or "").strip('"') in _FREE_CALLS:
        continue
      case _:
        common = {"runs": runs, "known": known, "op_name": origin}
        found.costs += _costs(module, instruction, computation, devices, common)


def _origin(instruction: Instruction, computation: Computation) -> str:
  """The name of the JAX operation of an instruction or of the nearest reader of its result, "" if none is near.

  A name without a path is no operation's: it is an argument's or the compiler's own.
  """
  nearest = [instruction]
  for _ in range(1 + _FARTHEST_READER):
    for one in nearest:
      if "/" in one.op_name:
        return one.op_name
    nearest = [reader for one in nearest for reader, _ in computation.users[one.name]]
  return ""


def _costs(
  module: Module, instruction: Instruction, computation: Computation, devices: int, common: dict[str, Any]
) -> Iterator[Cost]:
  """The instruction itself, unless it is nothing but a collective, and every collective that starts in it."""
  parts = list(_parts(module, instruction, computation))
  cycles = _cycles(instruction)
  sent = [(part, around, read_collective(part, around, devices)) for part, around in parts]
  sent = [one for one in sent if one[2] is not None]
  for part, around, collective in sent:
    if not _continues(part, around):
      size = traffic(module, part, around)
      yield Cost(part.name, part.opcode, "collective", 0, size, size, None, **common, collective=collective)
  if sent and cycles is None:
    return
  flops = sum(product_flops(part, around) for part, around in parts)
  yield Cost(
    instruction.name,
    instruction.opcode,
    _kind(instruction, [part for part, _ in parts], flops),
    flops,
    traffic(module, instruction, computation),
    traffic(module, instruction, computation, anywhere),
    cycles,
    **common,
  )


def _continues(collective: Instruction, computation: Computation) -> bool:
  """Whether it continues a collective that started before: every fusion that carries a chain along repeats it."""
  starts = any('"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values())
  return "chain_id=" in collective.attributes and not starts


def _parts(
  module: Module, instruction: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, Computation]]:
  """The instruction, or all that are fused into it, each with the computation around it."""
  if instruction.opcode != "fusion":
    yield instruction, computation
    return
  inner = module.computations[instruction.called[0]]
  for part in inner.instructions.values():
    yield from _parts(module, part, inner)


def _cycles(instruction: Instruction) -> int | None:
  """The estimate in the TPU's `backend_config`."""
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
  return int(found[1]) if found else None


def _kind(instruction: Instruction, parts: list[Instruction], flops: int) -> str:
  opcodes = {part.opcode for part in parts}
  if instruction.opcode in ("copy-start", "slice-start"):
    return "prefetch"
  if flops:
    return "matmul"
  if "sort" in opcodes:
    return "sort"
  if opcodes & {"gather", "scatter"}:
    return "gather/scatter"
  return "other"
