"""What tests share: folders named by the environment, and the switch for slow tests."""

import contextlib
import ctypes
import gc
import logging
import os
import pathlib

import pytest

from tests.bucket import bucket  # noqa: F401, a fixture
from tests.compiler import compile_quickly, forget_old_programs

_MOST_MAPPINGS = 25_000  # of the 65,530 that Linux allows a process by default
_MOST_MEMORY = 1.25 * 2**30  # bytes between two modules, so that a worker stays below 2 GiB within one

compile_quickly()

# Orbax's writes that tests make fail leave tasks behind, which would speak over pages when the process ends.
logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
  if not hasattr(config, "workerinput"):  # not in each of xdist's workers
    forget_old_programs()


def pytest_collection_modifyitems(config, items):
  # The longest ones first: begun last, one worker would be busy with them when the other has nothing left.
  items.sort(key=lambda item: "test_on_eight_devices" not in item.nodeid)
  if config.getoption("--slow"):
    return
  for item in items:
    if "slow" in item.keywords:
      item.add_marker(pytest.mark.skip(reason="slow: give --slow to run it"))


def pytest_collection_finish():
  """What imports have made stays: collections would look through it all the time."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def programs_of_runs():
  """Runs share theirs: hundreds of them train a few tiny models."""
  from moe.parallel.programs import shared_programs  # not before `compile_quickly`

  with shared_programs():
    yield


@pytest.fixture
def own_programs(monkeypatch):
  """What is made now shares no program with what was made before."""
  monkeypatch.setattr("moe.parallel.programs._kept", None)


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
  """Forgets compiled programs after a module if they are many, or large.

  Each takes memory, which nothing else would free, and memory mappings, which the kernel limits.
  """
  yield
  import jax  # not before `compile_quickly`

  process = pathlib.Path("/proc/self")
  if not process.exists():
    return
  mappings = (process / "maps").read_bytes().count(b"\n")
  memory = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  if mappings > _MOST_MAPPINGS or memory > _MOST_MEMORY:
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # of C libraries other than glibc
      ctypes.CDLL(None).malloc_trim(0)


def _folder(variable: str, holds: str) -> pathlib.Path:
  if variable not in os.environ:
    pytest.skip(f"{variable} is not set: it names the folder with {holds}")
  folder = pathlib.Path(os.environ[variable])
  assert folder.is_dir(), f"{variable} = {folder} is not a folder"
  return folder


@pytest.fixture(scope="session")
def parity_dir() -> pathlib.Path:
  """Other projects' inputs, weights and outputs."""
  return _folder("MOE_PARITY_DIR", "other projects' layer outputs (.npz)")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """Real data sets: TFDS folders and text files."""
  return _folder("MOE_DATA_DIR", "TFDS data sets (tfds/) and text (text/)")
