"""What every instruction of a compiled program costs, and how often it runs: a flat list.

Only instructions that are launched count: those of the entry computation, of loops and of called computations. What is
fused into one belongs to it.
"""

import dataclasses
import re
from collections.abc import Iterator

from moe.planning.collectives import Collective, read_collective
from moe.planning.hlo import Computation, Instruction, Module
from moe.planning.loops import Scope, trip_count
from moe.planning.products import product_flops
from moe.planning.traffic import anywhere, main_memory, traffic

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
    runs: how often it runs in one call of the program.
    flops: of matrix products, each run.
    bytes: to and from main memory, each run.
    touched: bytes of operands and results wherever they lie, each run.
    cycles: the compiler's estimate of one run; None where it has none.
    files: source files of the JAX call it was made of, innermost first.
    op_name: that call's name.
    collective: what it sends to other devices.
  """

  name: str
  opcode: str
  kind: str
  runs: int
  flops: int
  bytes: int
  touched: int
  cycles: int | None
  files: tuple[str, ...]
  op_name: str
  collective: Collective | None = None


@dataclasses.dataclass
class Costs:
  """All costs of a program, and how many of its loops had trips that only the data knows (counted once)."""

  costs: list[Cost]
  unknown_loops: int


def program_costs(module: Module, devices: int) -> Costs:
  """Goes through a program that runs on `devices` devices."""
  found = Costs([], 0)
  _visit(Scope(module, module.entry), 1, devices, found)
  return found


def _visit(scope: Scope, runs: int, devices: int, found: Costs) -> None:
  chains: set[str] = set()
  for instruction in scope.computation.instructions.values():
    match instruction.opcode:
      case "while":
        trips = trip_count(instruction, scope)
        found.unknown_loops += trips is None
        trips = 1 if trips is None else trips
        _visit(scope.inside(instruction, instruction.attribute("body").lstrip("%")), runs * trips, devices, found)
      case "call" | "conditional" | "async-start":
        for name in instruction.called:
          _visit(scope.inside(instruction, name), runs, devices, found)
      case opcode if opcode in _FREE or instruction.attribute("custom_call_target") in _quoted(_FREE_CALLS):
        continue
      case _:
        found.costs += _costs(scope.module, instruction, scope.computation, runs, devices, chains)


def _quoted(names: tuple[str, ...]) -> list[str]:
  return [f'"{name}"' for name in names]


def _costs(
  module: Module, instruction: Instruction, computation: Computation, runs: int, devices: int, chains: set[str]
) -> Iterator[Cost]:
  """The instruction itself, unless it is nothing but a collective, and every collective in it that is new."""
  parts = list(_parts(module, instruction, computation))
  cycles = _cycles(instruction)
  common = {"runs": runs, "files": module.files(instruction), "op_name": instruction.op_name}
  sent = False
  for part, place in parts:
    collective = read_collective(part, place, devices)
    if collective is None:
      continue
    sent = True
    # An asynchronous collective is written again in every fusion that goes on with it.
    chain = re.search(r'chain_id="(\d+)"', part.attributes)
    if chain and chain[1] in chains:
      continue
    chains.update([chain[1]] if chain else [])
    bytes_ = traffic(module, part, place)
    yield Cost(part.name, part.opcode, "collective", flops=0, bytes=bytes_, touched=0, cycles=None, collective=collective, **common)
  if sent and cycles is None:
    return
  yield Cost(
    instruction.name,
    instruction.opcode,
    _kind(instruction, [part for part, _ in parts]),
    flops=sum(product_flops(part, place) for part, place in parts),
    bytes=traffic(module, instruction, computation),
    touched=traffic(module, instruction, computation, anywhere),
    cycles=cycles,
    **common,
  )


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


def _kind(instruction: Instruction, parts: list[Instruction]) -> str:
  opcodes = {part.opcode for part in parts}
  if instruction.opcode in ("copy-start", "slice-start"):
    return "prefetch"
  if opcodes & {"dot", "convolution"}:
    return "matmul"
  if "sort" in opcodes:
    return "sort"
  if opcodes & {"gather", "scatter"}:
    return "gather/scatter"
  return "other"
