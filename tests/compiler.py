"""How tests compile: thousands of small programs that run once or twice each, so the compiler should be quick.

What is compiled is kept beside pytest's own cache, for the processes that a test starts and for the next run.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import time

# XLA's other emitter of fusions, and its splitting of a module for many cores, take four fifths of the time that it
# takes to compile. XLA ends the process at a flag that it does not know: jaxlib 0.11 has one emitter only.
_ONE_EMITTER = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) >= (0, 11)
_EMITTER = "" if _ONE_EMITTER else "--xla_cpu_use_fusion_emitters=false "
QUICK = f"{_EMITTER}--xla_cpu_parallel_codegen_split_count=1"


# Where `pytest --cache-clear` looks.
PROGRAMS = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "d" / "programs"
_LONGEST_KEPT = 7 * 24 * 3600  # seconds


def quick_flags(devices: int = 1) -> str:
  """XLA_FLAGS for a process with so many CPU devices."""
  return f"{QUICK} --xla_force_host_platform_device_count={devices}"


def compile_quickly() -> None:
  """For this process, before it imports JAX, and for those that it starts."""
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # no program of a test is debugged by its lines
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)  # even if there is another: tests would fill it
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  if QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{QUICK} {flags}"


def forget_old_programs() -> None:
  """Changed code leaves programs behind that nothing asks for again."""
  for path in PROGRAMS.glob("*"):
    with contextlib.suppress(FileNotFoundError):  # tests that run beside these do the same
      if path.stat().st_mtime < time.time() - _LONGEST_KEPT:
        path.unlink()
