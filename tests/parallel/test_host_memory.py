"""Freed memory is kept: the same large block, allocated again, costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from moe.parallel.host_memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
  print("unsupported")
else:
  import numpy as np
  for _ in range(2): np.ones(10_000_000)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5): np.ones(10_000_000)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> str:
  return subprocess.run([sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=True).stdout


def test_a_large_block_is_reused_without_page_faults():
  kept = page_faults("keep").strip()
  if kept == "unsupported":
    pytest.skip("this system's C library is not glibc")
  assert int(kept) < 100 < int(page_faults("default"))
