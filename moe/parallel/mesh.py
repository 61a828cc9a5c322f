"""The mesh of devices: its axes, its shape, and which rows of a batch each device holds.

Three axes, ordered by how far apart their devices may be. Each may have any size; their product is the number of
devices.

  data    replicas of the model (of its shards, with `fsdp`); the rows of a batch are sharded over it
  expert  experts are sharded over it, and so are rows: tokens travel to their experts and back by all-to-all
  model   attention heads, vocabulary and the width of feed-forward networks are sharded over it; rows are not
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
from moe.parallel.platform import default_platform

AXES = ("data", "expert", "model")
ROW_AXES = ("data", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The shape of the mesh.

  It decides where numbers are computed but does not change them, so a run may resume on another mesh.

  Attributes:
    data, expert, model: sizes of the axes; one of them may be -1, for all devices that the other two leave.
    fsdp: whether parameters and optimizer statistics are sharded over the row axes too, and gathered where they are
      used (Rajbhandari et al. 2020, "ZeRO"). Those of an expert are sharded over `data`, others over `data` and
      `expert`, or over the larger of the two that leaves shards of 16 rows or more.
  """

  data: int = -1
  expert: int = 1
  model: int = 1
  fsdp: bool = False

  def __post_init__(self) -> None:
    for name, size in self._sizes.items():
      require(
        size == -1 or size >= 1, name, size, "expected at least 1, or -1 for all devices that the other axes leave"
      )
    filled = [name for name, size in self._sizes.items() if size == -1]
    require(len(filled) <= 1, filled[-1] if filled else "", -1, "expected at most one axis of -1")

  def shape(self, devices: int) -> tuple[int, int, int]:
    """Sizes of the three axes on so many devices.

    Raises:
      ConfigError: their product is not the number of devices.
    """
    given = self._sizes.values()
    left = devices // math.prod(size for size in given if size != -1)
    data, expert, model = (left if size == -1 else size for size in given)
    wanted = f"expected data x expert x model to be the number of devices, {devices}"
    require(data * expert * model == devices, "config.mesh", " x ".join(map(str, given)), wanted)
    return data, expert, model

  @property
  def _sizes(self) -> dict[str, int]:
    return {name: getattr(self, name) for name in AXES}


def make_mesh(config: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges devices along `AXES`, by default all devices of all hosts.

  On TPUs, neighbours in the mesh are neighbours in the slice. With several slices, each holds whole `expert` and
  `model` axes and a shard of `data`, so that only the traffic of `data` crosses the slower network between them.

  Raises:
    ConfigError: the product of the shape is not the number of devices, or slices do not divide `data`; or JAX finds no
      devices.
  """
  if devices is None:
    default_platform()
    devices = jax.devices()
  devices = list(devices)
  shape = config.shape(len(devices))
  if devices[0].platform != "tpu":
    return Mesh(np.asarray(devices).reshape(shape), AXES)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
  data, *rest = shape
  require(data % slices == 0, "config.mesh.data", data, f"expected a multiple of the {slices} slices")
  return Mesh(
    mesh_utils.create_hybrid_device_mesh(
      (data // slices, *rest), (slices, 1, 1), devices, allow_split_physical_axes=True
    ),
    AXES,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis sharded over `ROW_AXES`."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
  """The number of shards of a batch's rows."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def check_rows(mesh: Mesh, batch: int, field: str) -> None:
  """Raises `ConfigError` unless a (micro-)batch of this many rows can be sharded over the mesh."""
  shards = row_shards(mesh)
  require(
    batch % shards == 0, field, batch, f"expected rows per micro-batch to be a multiple of data x expert = {shards}"
  )


def tracing_for(mesh: Mesh) -> contextlib.AbstractContextManager:
  """A context in which programs are traced for this mesh; see `current_mesh`."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current_mesh() -> AbstractMesh | None:
  """The mesh that the current program is traced for; None for a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def keep_rows(x: jax.Array, last: str | None = None) -> jax.Array:
  """Constrains `x [B, ..., w]` to be sharded by rows, and in its last axis over the mesh axis `last`."""
  if current_mesh() is None:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, *[None] * (x.ndim - 2), last))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
  """The rows of a batch on this host's devices, ascending; a row may be on several hosts."""
  slices = {index[0].indices(batch) for index in rows(mesh).addressable_devices_indices_map((batch,)).values()}
  return np.concatenate([np.arange(*part) for part in sorted(slices)])


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Arrays over the whole mesh, from the `local_rows` of a batch that each host has."""
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


def like(x: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
  """The shape of a kernel's result, which varies over the mesh axes of `jax.shard_map` as `x` does."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
