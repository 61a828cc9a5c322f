"""How much memory a device has, and how much of it arrays take."""

import contextlib
import math
import os
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

GIB = 2**30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_memory(mesh: Mesh) -> int | None:
  """Bytes that one device of the mesh has; None if unknown. The devices of a CPU share the memory of their host."""
  device = mesh.local_devices[0]
  if device.platform != "cpu":
    return (device.memory_stats() or {}).get("bytes_limit")
  return host_memory() // len(mesh.local_devices)


def host_memory() -> int:
  """Bytes that this machine has, or this container is allowed."""
  limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  for path in _CGROUP_LIMITS:
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
      limits.append(int(pathlib.Path(path).read_text()))
  return min(limits)


def shard_bytes(tree: Any) -> int:
  """Bytes per device of shapes with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
