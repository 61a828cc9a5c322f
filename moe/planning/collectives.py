"""Traffic between devices: what an instruction moves, over which axes of the mesh, and how long the links take.

The compiler has no estimate for collectives, so their time is modelled here: rings use all links of the group's chips,
an all-to-all is limited by the links across the middle of the longest dimension (Jouppi et al. 2023, "TPU v4",
section 2; Austin et al. 2025, "How to scale your model", section 3). Without latency and congestion: a lower bound.
"""

import dataclasses
import math
import re

import numpy as np
from jax.sharding import Mesh

from moe.planning.hlo import Computation, Instruction, Shape
from moe.planning.topology import Slice

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One run of one collective.

  Attributes:
    kind: one of `KINDS`.
    bytes: per device, of the larger side: after gathering, or before scattering.
    groups: int `[G, n]`, indices into `mesh.devices.flat` of the devices that communicate; of a permute, its pairs.
    hidden: whether it is asynchronous, so that computation may hide it.
  """

  kind: str
  bytes: int
  groups: np.ndarray
  hidden: bool


def read_collective(instruction: Instruction, computation: Computation, devices: int) -> Collective | None:
  """What an instruction moves between `devices` devices; None if it is no collective, or only ends one."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  # Counted from the operands: the result of a start also holds these and what the hardware needs.
  operands = [computation.instructions[name].shapes for name in instruction.operands]
  before = sum(_bytes(shapes) for shapes in operands)
  after = before * _gathered(instruction, devices) if kind == "all-gather" else before
  scatters = kind == "all-reduce" and computation.root.opcode == "dynamic-slice"
  return Collective(
    "reduce-scatter" if scatters else kind,
    after,
    read_groups(instruction, devices),
    instruction.opcode.endswith("-start") or "chain_id=" in instruction.attributes,
  )


def _bytes(shapes: tuple[Shape, ...]) -> int:
  return sum(shape.bytes for shape in shapes)


def _gathered(instruction: Instruction, devices: int) -> int:
  return read_groups(instruction, devices).shape[1]


def read_groups(instruction: Instruction, devices: int) -> np.ndarray:
  """The groups that communicate, int `[G, n]`. XLA has three notations for them, and pairs for permutes.

  Raises:
    ValueError: they are in another notation.
  """
  text = instruction.attributes
  if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", text):
    return np.array([_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])])
  if "replica_groups={}" in text:
    return np.arange(devices)[None]
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[\S+?)(?:, |$)", text):
    return _order(found[2]).reshape(_numbers(found[1]))
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", text):
    groups = _named_groups(found[1], found[3])
    return groups if found[2] is None else _order(found[2])[groups]
  raise ValueError(f"cannot read the groups of {instruction.name}: {text[:200]}")


def _numbers(text: str) -> list[int]:
  return [int(n) for n in re.findall(r"\d+", text)]


def _order(text: str) -> np.ndarray:
  """Devices in the order `0,2,1,3`, or the same as `[2,2]T(1,0)`: numbered, reshaped, transposed."""
  if not text.startswith("["):
    return np.array(_numbers(text))
  dims, _, transposed = text.partition("T")
  shape = _numbers(dims)
  return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(transposed) or range(len(shape))).reshape(-1)


def _named_groups(axes: str, chosen: str) -> np.ndarray:
  """From `'a'=2,'b'=8` and `'a','b':(2)4`: all of a, and of b's 8 devices the 4 that are 8 / (2 * 4) apart."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  parts: dict[str, tuple[int, int]] = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
  }
  shape: list[int] = []
  inside: list[bool] = []
  for name, size in sizes.items():
    before, part = parts.get(name, (size, 1))
    shape += [before, part, size // (before * part)]
    inside += [False, name in parts, False]
  order = sorted(range(len(shape)), key=lambda axis: inside[axis])
  members = math.prod(size for size, within in zip(shape, inside) if within)
  return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, members)


def axes(groups: np.ndarray, mesh: Mesh) -> str:
  """The mesh axes along which the members of a group differ, such as "data+expert"; "none" for groups of one."""
  indices = np.unravel_index(groups, mesh.devices.shape)
  differ = [name for name, index in zip(mesh.axis_names, indices) if (index != index[:, :1]).any()]
  return "+".join(differ) or "none"


def seconds(collective: Collective, mesh: Mesh, where: Slice) -> float:
  """A lower bound of the time that one run of it takes on the links between chips."""
  chips = np.array([device.coords[: len(where.shape)] for device in mesh.devices.flat])  # [devices, dimensions]
  coordinates = chips[collective.groups]  # [G, n, dimensions]
  if collective.kind == "collective-permute":
    return collective.bytes * max(1, _hops(coordinates, where)) / where.chip.link
  group = coordinates[0]
  extents = [len(set(group[:, axis])) for axis in range(group.shape[1])]
  used = [(extent, where.wraps(axis) and extent == where.shape[axis]) for axis, extent in enumerate(extents)]
  used = [(extent, wraps) for extent, wraps in used if extent > 1]
  if not used:
    return 0.0
  share = (len(group) - 1) / len(group)
  if "all-to-all" in collective.kind:
    return collective.bytes * max(extent / (8 if wraps else 4) for extent, wraps in used) / where.chip.link
  links = sum(2 if wraps else 1 for _, wraps in used)
  rounds = 2 if collective.kind == "all-reduce" else 1
  return rounds * collective.bytes * share / (links * where.chip.link)


def _hops(pairs: np.ndarray, where: Slice) -> int:
  """The longest path of a permute, in links."""
  steps = np.abs(pairs[:, 0] - pairs[:, 1])
  for axis, size in enumerate(where.shape):
    if where.wraps(axis):
      steps[:, axis] = np.minimum(steps[:, axis], size - steps[:, axis])
  return int(steps.sum(axis=1).max())
