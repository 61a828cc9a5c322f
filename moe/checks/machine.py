"""What a machine is: versions, devices, memory, and what the environment asks of the compiler."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

from moe.parallel.memory import GIB, host_memory
from moe.parallel.processors import processors

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy", "scipy")
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def machine() -> dict[str, Any]:
  """As JSON values."""
  devices = jax.devices()
  return {
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "system": platform.platform(),
    "cores": len(processors()),
    "host_gib": round(host_memory() / GIB, 1),
    "platform": platform_of(devices[0]),
    "device": devices[0].device_kind,
    "devices": len(devices),
    "device_gib": device_gib(devices[0]),
    "driver": devices[0].client.platform_version.splitlines(),
    "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
  }


def platform_of(device: jax.Device) -> str:
  """The kind of a device, "cpu", "tpu", "cuda" or "rocm": JAX calls the last two "gpu"."""
  if device.platform != "gpu":
    return device.platform
  return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def device_gib(device: jax.Device) -> float | None:
  """GiB that one device may use; None if unknown, as of the CPU."""
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return None if limit is None else round(limit / GIB, 1)
