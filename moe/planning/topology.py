"""The TPU slices that can be planned for: their names, their devices, and what a chip of each generation can do.

Peak FLOP/s, memory bandwidth and links are from the Cloud TPU documentation (pages "TPU v4", "v5e", "v5p", "v6e";
Jouppi et al. 2023 for v4's links): the documented interconnect bandwidth of a chip, divided by its links and by the
two directions. `hbm` is what libtpu's compiler lets a program use, as its out-of-memory errors say. `clock` turns the
compiler's cycles into time: the peak divided by what the matrix units do in a cycle (v4 and v5p: two cores of four
128 x 128 units; v5e: four of them; v6e: the compiler's cycles for a large product are only consistent with four of
256 x 256).
"""

import dataclasses
import math
import os
import re
from typing import Any

from moe.config import ConfigError, require

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation. A JAX device is one chip; the two cores of v4 and v5p work as one ("megacore").

  Attributes:
    flops: peak of bfloat16 products, FLOP/s.
    hbm: bytes of memory that a program may use.
    bandwidth: of that memory, bytes/s.
    clock: cycles/s.
    link: bytes/s of one link between chips, per direction.
    largest: chips in the largest slice.
    standard: the shapes that Google offers, smallest first.
    options: of the compiler's topology.
  """

  flops: float
  hbm: float
  bandwidth: float
  clock: float
  link: float
  largest: int
  standard: tuple[tuple[int, ...], ...]
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def dimensions(self) -> int:
    return len(self.standard[0])


_CUBES = (
  *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
  *((8, 8, 16), (8, 16, 16), (16, 16, 16)),
)
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))

CHIPS = {
  "v4": Chip(275e12, 30.75 * GIB, 1.228e12, 1.05e9, 50e9, 4096, _CUBES, (("chip_config_name", "megacore"),)),
  "v5e": Chip(197e12, 15.75 * GIB, 0.819e12, 1.5e9, 50e9, 256, _SQUARES),
  "v5p": Chip(459e12, 95.74 * GIB, 2.765e12, 1.75e9, 100e9, 6144, _CUBES),
  "v6e": Chip(918e12, 31.25 * GIB, 1.638e12, 1.75e9, 100e9, 256, _SQUARES),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A box of chips of one generation.

  Attributes:
    generation: a key of `CHIPS`.
    shape: chips along each dimension.
  """

  generation: str
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    return f"{self.generation}:{'x'.join(map(str, self.shape))}"

  @property
  def chip(self) -> Chip:
    return CHIPS[self.generation]

  @property
  def chips(self) -> int:
    return math.prod(self.shape)

  def wraps(self, axis: int) -> bool:
    """Whether the last chip of a dimension is linked to the first.

    Cubes of 4 x 4 x 4 are joined optically into a torus; the 2D generations wrap only along a whole side (16) of a pod.
    """
    if self.chip.dimensions == 3:
      return all(size % 4 == 0 for size in self.shape)
    return self.shape[axis] == 16

  @property
  def standard(self) -> tuple["Slice", ...]:
    """The slices of this generation that Google offers, smallest first."""
    return tuple(Slice(self.generation, shape) for shape in self.chip.standard)


def parse_slice(text: str, field: str = "--topology") -> Slice:
  """Parses `GENERATION:AxB` or `GENERATION:AxBxC`.

  Raises:
    ConfigError: there is no such slice.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", text)
  examples = "v4:8x8x8, v5e:16x16, v5p:8x8x8 or v6e:16x16"
  if found is None or found[1] not in CHIPS:
    raise ConfigError(field, text, f"expected a generation of {', '.join(CHIPS)} and its shape, such as {examples}")
  asked = Slice(found[1], tuple(map(int, found[2].split("x"))))
  offered = f"{found[1]} has {', '.join(one.name.split(':')[1] for one in asked.standard)}"
  dimensions = asked.chip.dimensions
  require(len(asked.shape) == dimensions, field, text, f"expected {dimensions} dimensions; {offered}")
  require(0 < asked.chips <= asked.chip.largest, field, text, f"expected 1 to {asked.chip.largest} chips; {offered}")
  whole = asked.shape in asked.chip.standard or all(size % 2 == 0 for size in asked.shape[:2])
  require(whole, field, text, f"expected whole hosts, of 2 x 2 chips; {offered}")
  return asked


def devices(where: Slice) -> list[Any]:
  """The devices of a slice, for compilation only.

  Raises:
    ConfigError: the TPU compiler is not installed.
  """
  # libtpu reads these when it is loaded: there is no TPU here to query or to lock.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  options = dict(where.chip.options)
  if where.chips == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=where.name, **options).devices
  except RuntimeError as error:
    if "not installed" not in str(error):
      raise
    install = "expected the TPU compiler to be installed: pip install -e '.[tpu]'"
    raise ConfigError("--topology", where.name, install) from None
