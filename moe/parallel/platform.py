"""The platform that JAX runs on."""

import os

import jax

from moe.config import ConfigError
from moe.parallel.host_memory import keep_freed_memory


def start_platform() -> str:
  """Starts JAX for training or measuring; on CPUs with an allocator that keeps what is freed.

  Returns:
    As `default_platform`.

  Raises:
    ConfigError: as `default_platform`.
  """
  keep_freed_memory()
  return default_platform()


def default_platform() -> str:
  """The kind of this machine's devices: "cpu", "gpu" or "tpu". Call it before other uses of them.

  Raises:
    ConfigError: the environment asks for a platform that JAX does not find.
  """
  try:
    return jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # an assertion where only a plugin of a known platform is missing
    reason = next(iter(str(error).splitlines()), "its plugin is not installed")
    wanted = f"expected a platform that JAX finds on this machine ({reason})"
    raise ConfigError("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", ""), wanted) from None
