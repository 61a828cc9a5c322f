"""The run that another is made of: one of its checkpoints, whole."""

import dataclasses
import os
from typing import Any

import jax

from moe.evaluation.restore import Trained, open_checkpoints
from moe.parallel.mesh import make_mesh
from moe.training.experiment import ExperimentConfig
from moe.training.setup import Setup
from moe.training.state import TrainState
from moe.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class OldRun:
  """A checkpoint of a run.

  Attributes:
    trained: its model.
    state: all of training's.
    position: in the data.
    about: what the checkpoint says of the run.
  """

  trained: Trained
  state: TrainState
  position: Any
  about: dict[str, Any]


def read_run(folder: str | os.PathLike[str], step: str) -> OldRun:
  """Reads a checkpoint with the optimizer's statistics, onto one device.

  Raises:
    WorkdirError, ConfigError, CheckpointError: as `moe.evaluation.restore.restore`.
  """
  workdir = Workdir(folder)
  config = workdir.load_config()
  setup = setup_of(config)
  with open_checkpoints(workdir) as checkpoints:
    restored = checkpoints.restore_step(checkpoints.find(step, "--step"), setup.abstract)
  state, about = restored.state, restored.about
  vocabulary, graph = about["vocabulary"], setup.graph
  trained = Trained(config, int(state.step), graph, state.params, state.router_state, vocabulary, setup.mesh)
  return OldRun(trained, state, restored.position, about)


def setup_of(config: ExperimentConfig) -> Setup:
  """What a config trains with, on one device, whatever its own mesh."""
  return Setup(config, make_mesh(devices=jax.local_devices()[:1]))
