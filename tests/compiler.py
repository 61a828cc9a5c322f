"""How tests compile: thousands of small programs that run once or twice each, so the compiler should be quick."""

import importlib.metadata
import os

# XLA's other emitter of fusions, and its splitting of a module for many cores, take four fifths of the time that it
# takes to compile. XLA ends the process at a flag that it does not know: jaxlib 0.11 has one emitter only.
_ONE_EMITTER = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) >= (0, 11)
_EMITTER = "" if _ONE_EMITTER else "--xla_cpu_use_fusion_emitters=false "
QUICK = f"{_EMITTER}--xla_cpu_parallel_codegen_split_count=1"


def quick_flags(devices: int = 1) -> str:
  """XLA_FLAGS for a process with so many CPU devices."""
  return f"{QUICK} --xla_force_host_platform_device_count={devices}"


def compile_quickly() -> None:
  """For this process, before it imports JAX, and for those that it starts."""
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # no program of a test is debugged by its lines
  if QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{QUICK} {flags}"
