"""The mesh of devices and where arrays lie on it: parameters on every device, a batch's rows divided among them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.config import require


def make_mesh() -> Mesh:
  """All devices of all hosts in one row, along the axis `data`."""
  return Mesh(np.asarray(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis divided over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_rows(mesh: Mesh, batch: int, field: str) -> None:
  """Raises `ConfigError` unless a (micro-)batch of this many rows can be divided over the devices."""
  require(batch % mesh.size == 0, field, batch, f"rows at once must be a multiple of the {mesh.size} devices")


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Arrays over the whole mesh, given the rows of the batch that this host has."""
  return {name: jax.make_array_from_process_local_data(rows(mesh), value) for name, value in batch.items()}
