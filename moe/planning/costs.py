"""What every instruction of a compiled program costs, and how often it runs: a flat list.

Only instructions that are launched count: those of the entry computation, of loops and of called computations, of all
branches where there is a choice. What is fused into one belongs to it.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from moe.planning.collectives import Collective, read_collective
from moe.planning.hlo import Computation, Instruction, Module
from moe.planning.loops import Scope, trip_count
from moe.planning.products import product_flops
from moe.planning.traffic import anywhere, traffic

KINDS = ("matmul", "collective", "gather/scatter", "sort", "other")

_FREE = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
  *("copy-done", "slice-done", "async-done", "async-update", "opt-barrier", "domain"),
  *("all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
)
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclasses.dataclass(frozen=True)
class Cost:
  """One instruction.

  Attributes:
    name: of the instruction.
    opcode: of it.
    kind: one of `KINDS`, or "prefetch": a copy between memories that runs beside the computation.
    flops: of matrix products, each run.
    bytes: to and from main memory, each run.
    touched: bytes of operands and results wherever they lie, each run.
    cycles: the compiler's estimate of one run; None where it has none.
    runs: how often it runs in one call of the program.
    known: False inside a loop whose trips only the data knows: each such loop counts as one trip.
    files: source files of the JAX call that it was made of (or the next to read it), innermost first.
    op_name: the name of its own JAX call, "" where it has none.
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
  files: tuple[str, ...]
  op_name: str
  collective: Collective | None = None


@dataclasses.dataclass
class Costs:
  """All costs of a program, and how many of its loops had trips that only the data knows (counted once)."""

  costs: list[Cost]
  unknown_loops: int

  @property
  def flops(self) -> int:
    """Of all matrix products."""
    return sum(cost.runs * cost.flops for cost in self.costs)


def program_costs(module: Module, devices: int) -> Costs:
  """Goes through a program that runs on `devices` devices."""
  found = Costs([], 0)
  _visit(Scope(module, module.entry), 1, devices, found)
  return found


def _visit(
  scope: Scope, runs: int, devices: int, found: Costs, files: tuple[str, ...] = (), known: bool = True
) -> None:
  """Adds what a computation costs that runs `runs` times, which is a guess unless `known`.

  `files` are those of the loop or call that it is part of, for what the compiler put into it.
  """
  module, computation = scope.module, scope.computation
  for instruction in computation.instructions.values():
    origin = _origin(module, instruction, computation) or files
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
        common = {"runs": runs, "known": known, "files": origin, "op_name": instruction.op_name}
        found.costs += _costs(module, instruction, computation, devices, common)


def _origin(module: Module, instruction: Instruction, computation: Computation, depth: int = 3) -> tuple[str, ...]:
  """Source files of an instruction; of the nearest that reads its result where the compiler made it without a word."""
  files = module.files(instruction)
  if files or depth == 0:
    return files
  found = (_origin(module, user, computation, depth - 1) for user, _ in computation.users[instruction.name])
  return next(filter(None, found), ())


def _costs(
  module: Module, instruction: Instruction, computation: Computation, devices: int, common: dict[str, Any]
) -> Iterator[Cost]:
  """The instruction itself, unless it is nothing but a collective, and every collective in it that starts there."""
  parts = list(_parts(module, instruction, computation))
  cycles = _cycles(instruction)
  sent = [(part, place, read_collective(part, place, devices)) for part, place in parts]
  sent = [one for one in sent if one[2] is not None]
  for part, place, collective in sent:
    if not _goes_on(part, place):
      size = traffic(module, part, place)
      yield Cost(part.name, part.opcode, "collective", 0, size, size, None, **common, collective=collective)
  if sent and cycles is None:
    return
  flops = sum(product_flops(part, place) for part, place in parts)
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


def _goes_on(collective: Instruction, computation: Computation) -> bool:
  """Whether it only continues one that started before: a chain is written again in every fusion that carries it on."""
  starts = any('"AsyncCollectiveStart"' in other.attributes for other in computation.instructions.values())
  return "chain_id=" in collective.attributes and not starts


def _parts(
  module: Module, instruction: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, Computation]]:
  """The instruction, or all that are fused into it, each with the computation that it stands in."""
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
