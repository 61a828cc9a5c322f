"""The workdir of a run whose first state was not trained there: its config, its vocabulary, one checkpoint."""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.config import require
from moe.data import Vocabulary
from moe.files import local_path
from moe.parallel.memory import shard_bytes
from moe.parallel.mesh import make_mesh
from moe.training.checkpoint import Checkpoints
from moe.training.experiment import ExperimentConfig
from moe.training.feed import describe, fingerprint
from moe.training.setup import Setup
from moe.training.state import TrainState, stored_router_state
from moe.training.workdir import Workdir, with_absolute_paths

_ALIGNMENT = 64  # bytes, JAX's
_LEAST_FILE_BYTES = 2**22


def new_workdir(path: str | os.PathLike[str]) -> Workdir:
  """The paths of a run that is yet to be written; call it before the work.

  Raises:
    ConfigError: there is something in the folder, or it cannot be a run's.
  """
  workdir = Workdir(local_path("--workdir", path))
  root = workdir.root
  free = not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir()))
  require(free, "--workdir", str(root), "expected a new folder, or an empty one")
  return workdir


def new_array(shape: tuple[int, ...]) -> np.ndarray:
  """An uninitialised float32 array whose memory JAX can use as it is, on a CPU."""
  size = 4 * math.prod(shape)
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(np.float32).reshape(shape)


def write_run(
  workdir: Workdir,
  config: ExperimentConfig,
  params: dict[str, Any],
  router_state: dict[str, Any],
  vocabulary: Vocabulary,
  *,
  step: int = 0,
  opt_state: Any = None,
  position: Any = None,
  data: dict[str, str] | None = None,
  router_files: str | None = None,
) -> None:
  """Writes a run with one checkpoint, as if it had been trained to this step.

  It can be evaluated, and others can begin with it. Training it further begins with the first of its data, unless a
  position is given.

  Args:
    workdir: from `new_workdir`.
    config: complete; the stored one names the workdir's own copy of the vocabulary.
    params: of the model, as `moe.training.state.split` returns them; of NumPy too, best from `new_array`.
    router_state: likewise.
    vocabulary: of the config's data.
    step: of the checkpoint.
    opt_state: of the config's optimizer; None for its first.
    position: where the run is in its data, as a checkpoint has it.
    data: fingerprints of the data that it is a position in.
    router_files: fingerprint of what the routers began with; None to read it from the files that the config names.

  Raises:
    WorkdirError: the folder is in use, or cannot be written to.
    CheckpointError: the checkpoint could not be written, or a number is not finite.
    ValueError: the arrays are not those of the config's model.
  """
  if vocabulary.model is not None:
    own = dataclasses.replace(config.data, vocabulary=str(workdir.vocabulary))
    config = dataclasses.replace(config, data=own)
  mesh = make_mesh(devices=jax.local_devices()[:1])
  setup = Setup(config, mesh)
  params, router_state = jax.tree.map(lambda leaf: _on_device(leaf, mesh.devices.flat[0]), (params, router_state))
  if opt_state is None:
    opt_state = jax.jit(setup.optimizer.init)(params)
  state = TrainState(jnp.asarray(step, jnp.int32), params, router_state, opt_state)
  _check_shapes(state, setup.abstract)
  about = {
    "config": with_absolute_paths(config),
    "vocabulary": describe(vocabulary),
    "data": data,
    "router_files": router_files or fingerprint(stored_router_state(config.model, vocabulary.fingerprint)),
    "since_record": None,
  }
  with workdir.held():
    # Files of a thirtieth of the model: two are held in memory, besides the model itself.
    file_bytes = max(shard_bytes(params) // 30, _LEAST_FILE_BYTES)
    claim = functools.partial(workdir.claim, config, vocabulary.model)
    checkpoints = Checkpoints(workdir.checkpoints, on_first=claim, file_bytes=file_bytes)
    try:
      checkpoints.save(state, position, about)
    finally:
      checkpoints.close()


def _on_device(array: Any, device: jax.Device) -> jax.Array:
  """The array, on a CPU without a copy of NumPy's memory if it is aligned."""
  if isinstance(array, np.ndarray) and device.platform == "cpu":
    return jax.dlpack.from_dlpack(array)
  return jax.device_put(array, device)


def _check_shapes(state: TrainState, abstract: TrainState) -> None:
  """Raises `ValueError` unless the state has the arrays that it should have."""

  def shapes(tree: Any) -> dict[str, tuple[Any, ...]]:
    return {
      jax.tree_util.keystr(path): (np.shape(leaf), np.dtype(leaf.dtype))
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  found, expected = shapes(state), shapes(abstract)
  wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
  if wrong:
    listed = "; ".join(f"{name} is {found.get(name)}, expected {expected.get(name)}" for name in wrong)
    raise ValueError(f"not the state of this config: {listed}")
