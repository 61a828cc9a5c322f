"""The mesh of devices: its axes, its shape from a config, and which rows of a batch lie where.

Three axes, in the order of how far apart their devices may be. Each may have any size; the product is the number of
devices.

  data    replicas of the model (of its shards, with `fsdp`); the rows of a batch are divided over it
  expert  experts are divided over it, and so are rows: tokens travel to their experts and back by all-to-all
  model   attention heads, vocabulary and the width of feed-forward networks are divided over it; rows are not
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from moe.config import require

AXES = ("data", "expert", "model")
ROW_AXES = ("data", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The mesh's shape; at most one axis may be -1, which fills in what the number of devices leaves.

  It changes where numbers are computed and none of them, so a run may go on with another.

  Attributes:
    data, expert, model: sizes of the axes.
    fsdp: whether parameters and optimizer statistics are divided over the axes of rows too, and gathered where they
      are used (Rajbhandari et al. 2020, "ZeRO"). An expert's are divided over `data`, the others over `data` and
      `expert`, or over the larger of the two that leaves parts of 16 rows or more.
  """

  data: int = -1
  expert: int = 1
  model: int = 1
  fsdp: bool = False

  def __post_init__(self):
    for name, size in self._sizes.items():
      require(size == -1 or size >= 1, name, size, "must be at least 1, or -1 for what the other axes leave")
    filled = [name for name, size in self._sizes.items() if size == -1]
    require(len(filled) <= 1, filled[-1] if filled else "", -1, "only one axis may be -1")

  def shape(self, devices: int) -> tuple[int, int, int]:
    """Sizes of the three axes on so many devices.

    Raises:
      ConfigError: they do not multiply to the number of devices.
    """
    given = self._sizes.values()
    left = devices // math.prod(size for size in given if size != -1)
    data, expert, model = (left if size == -1 else size for size in given)
    wanted = f"data x expert x model must be the number of devices, which is {devices}"
    require(data * expert * model == devices, "config.mesh", " x ".join(map(str, given)), wanted)
    return data, expert, model

  @property
  def _sizes(self) -> dict[str, int]:
    return {name: getattr(self, name) for name in AXES}


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
  """Lays devices out along `AXES`: by default all of all hosts.

  On TPUs neighbours in the mesh are neighbours in the slice; of several slices, each holds whole `expert` and `model`
  axes and a share of `data`, whose traffic alone crosses the slower network between them.

  Raises:
    ConfigError: the shape does not multiply to the devices, or `data` not over the slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = config.shape(len(devices))
  if devices[0].platform != "tpu":
    return Mesh(np.asarray(devices).reshape(shape), AXES)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
  data, *rest = shape
  require(data % slices == 0, "config.mesh.data", data, f"must be a multiple of the {slices} slices")
  return Mesh(
    mesh_utils.create_hybrid_device_mesh(
      (data // slices, *rest), (slices, 1, 1), devices, allow_split_physical_axes=True
    ),
    AXES,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis divided over the axes of rows."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
  """Into how many parts the rows of a batch are divided."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def check_rows(mesh: Mesh, batch: int, field: str) -> None:
  """Raises `ConfigError` unless a (micro-)batch of this many rows can be divided over the mesh."""
  shards = row_shards(mesh)
  require(batch % shards == 0, field, batch, f"rows at once must be a multiple of data x expert = {shards}")


def tracing_for(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Within, programs that are being traced know that they are for this mesh; see `current_mesh`."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current_mesh() -> AbstractMesh | None:
  """The mesh that the program being traced is for; None for a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def keep_rows(x: jax.Array, last: str | None = None) -> jax.Array:
  """States that `x [B, ..., w]` is divided by rows, and by the axis `last` of the mesh in its last axis."""
  if current_mesh() is None:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, *[None] * (x.ndim - 2), last))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
  """The rows of a batch that this host's devices hold, ascending; hosts that share a row each have it."""
  slices = {index[0].indices(batch) for index in rows(mesh).addressable_devices_indices_map((batch,)).values()}
  return np.concatenate([np.arange(*part) for part in sorted(slices)])


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Arrays over the whole mesh, given the `local_rows` of the batch that this host has."""
  sharding, shards = rows(mesh), row_shards(mesh)
  size = len(next(iter(batch.values()))) * shards // len(local_rows(mesh, shards))
  here = local_rows(mesh, size)

  def put(value: np.ndarray) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(size)
      first = int(np.searchsorted(here, start))
      return value[first : first + stop - start]

    return jax.make_array_from_callback((size, *value.shape[1:]), sharding, shard)

  return {name: put(value) for name, value in batch.items()}
