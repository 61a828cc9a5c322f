"""A trained model from its workdir."""

import dataclasses
import pathlib
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from moe.config import ConfigError, require
from moe.data import Vocabulary
from moe.models import make_model
from moe.parallel.mesh import MeshConfig, make_mesh
from moe.training.checkpoint import CheckpointError, Checkpoints
from moe.training.experiment import ExperimentConfig
from moe.training.state import abstract_model, merge
from moe.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Trained:
  """One checkpoint of a run, parameters only.

  Attributes:
    config: the run's; step: the checkpoint's; graph, params, router_state: the model (`moe.training.state`);
    vocabulary: name, size and fingerprint of the one it was trained with;
    mesh: where the arrays lie.
  """

  config: ExperimentConfig
  step: int
  graph: nnx.GraphDef
  params: dict[str, Any]
  router_state: dict[str, Any]
  vocabulary: dict[str, Any]
  mesh: Mesh

  @property
  def model(self) -> nnx.Module:
    """The model to call."""
    return merge(self.graph, self.params, self.router_state)


def restore(workdir: str | pathlib.Path, step: str = "best", mesh: MeshConfig | None = None) -> Trained:
  """Reads a checkpoint's parameters; nothing in the workdir is changed.

  Args:
    workdir: of a run.
    step: a number, `latest`, or `best`: the lowest validation loss, or the latest where none was validated.
    mesh: of all devices here, which need not be the one of training; None takes one device.

  Raises:
    WorkdirError: there is no run.
    ConfigError: `step` is none of these, or the mesh does not fit the devices or the model.
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  place = Workdir(workdir)
  config = place.load_config()
  if not place.checkpoints.exists():
    raise CheckpointError(f"{place.root} has no checkpoint yet")
  checkpoints = Checkpoints(place.checkpoints, read_only=True)
  chosen = None if mesh else jax.local_devices()[:1]
  mesh = mesh or MeshConfig()
  devices = make_mesh(mesh, chosen)
  config.model.check_mesh(devices)
  try:
    number = _number(checkpoints, step)
    graph, *shapes = abstract_model(lambda rngs: make_model(config.model, rngs), devices, fsdp=mesh.fsdp)
    params, router_state, about = checkpoints.restore_model(number, *shapes)
  finally:
    checkpoints.close()
  return Trained(config, number, graph, params, router_state, about["vocabulary"], devices)


def kept_steps(workdir: str | pathlib.Path) -> list[int]:
  """The steps of a run's checkpoints, oldest first; empty where it has none yet."""
  place = Workdir(workdir)
  if not place.checkpoints.exists():
    return []
  checkpoints = Checkpoints(place.checkpoints, read_only=True)
  try:
    return checkpoints.steps()
  finally:
    checkpoints.close()


def check_vocabulary(trained: Trained, vocabulary: Vocabulary) -> None:
  """Raises `ConfigError` unless `vocabulary` is the one that the checkpoint was trained with."""
  old = trained.vocabulary
  smaller = f"has {vocabulary.size} tokens, the checkpoint's has {old['size']}"
  require(vocabulary.size >= old["size"], "data.vocabulary", vocabulary.name, smaller)
  same = vocabulary.fingerprint == old["fingerprint"]
  require(same, "data.vocabulary", vocabulary.name, f"is not the one of the checkpoint ({old['name']})")


def _number(checkpoints: Checkpoints, step: str) -> int:
  latest = checkpoints.latest()
  if latest is None:
    raise CheckpointError(f"there is no checkpoint under {checkpoints.folder}")
  match step:
    case "latest":
      return latest
    case "best":
      return checkpoints.best() or latest
    case _ if step.isdecimal():
      return int(step)
  raise ConfigError("step", step, "expected a number, 'best' or 'latest'")
