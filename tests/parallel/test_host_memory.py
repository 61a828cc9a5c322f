"""Freed memory is kept: what a program's call allocates again costs few page faults."""

import ctypes
import os
import subprocess
import sys

import pytest

from moe.parallel.host_memory import keep_freed_memory

# The blocks are allocated by JAX's own threads.
PROGRAM = """
import resource, sys
from moe.parallel.platform import default_platform, start_platform
{"start": start_platform, "default": default_platform}[sys.argv[1]]()
import jax, jax.numpy as jnp
transformed, x = jax.jit(lambda x: jnp.fft.rfft(x).real.sum()), jnp.ones(8_000_000)
for _ in range(3): transformed(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): transformed(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
  command, environment = [sys.executable, "-c", PROGRAM, argument], os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's C library is not glibc")
def test_programs_on_cpus_reuse_large_blocks():
  # Of several attempts one: where memory is short, a kernel takes pages back that were not touched for a while.
  default = page_faults("default")
  assert any(3 * page_faults("start") < default for _ in range(4))


@pytest.mark.parametrize("platforms", ["tpu", "cuda,cpu"])
def test_with_accelerators_the_allocator_is_left_as_it_is(monkeypatch, platforms):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  assert not keep_freed_memory()
