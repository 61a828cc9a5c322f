"""Trained models, read from the workdirs of their runs."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from moe.config import in_section, require
from moe.data import Vocabulary, load_vocabulary, make_vocabulary
from moe.parallel.mesh import MeshConfig, make_mesh
from moe.training.checkpoint import CheckpointError, Checkpoints
from moe.training.experiment import ExperimentConfig
from moe.training.state import abstract_model, merge
from moe.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Trained:
  """The model of one checkpoint.

  Attributes:
    config: of the run.
    step: of the checkpoint.
    graph, params, router_state: the model, as `moe.training.state.split` returns it.
    vocabulary: name, size and fingerprint of the one it was trained with.
    mesh: of the devices that hold the arrays.
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


def restore(folder: str | pathlib.Path, step: str = "best", mesh: MeshConfig | None = None) -> Trained:
  """Reads a checkpoint's parameters; nothing in the workdir is changed.

  Args:
    folder: workdir of the run.
    step: a number, `latest`, or `best`: of the lowest validation loss, or the highest score in a run that scores tasks;
      the latest where none was validated.
    mesh: of all devices of this process, not necessarily that of training; None takes one device.

  Raises:
    WorkdirError: there is no run.
    ConfigError: `step` is none of these, or the mesh does not fit the devices or the model.
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  workdir = Workdir(folder)
  config = workdir.load_config()
  with open_checkpoints(workdir) as checkpoints:
    chosen = None if mesh else jax.local_devices()[:1]
    mesh = mesh or MeshConfig()
    devices = make_mesh(mesh, chosen)
    config.model.check_mesh(devices)
    number = checkpoints.find(step, "--step")
    model = abstract_model(config.model.make, devices, fsdp=mesh.fsdp)
    params, router_state, about = checkpoints.restore_model(number, model.params, model.router_state)
  return Trained(config, number, model.graph, params, router_state, about["vocabulary"], devices)


def kept_steps(folder: str | pathlib.Path) -> list[int]:
  """The steps of a run's checkpoints, oldest first; empty if it has none yet."""
  workdir = Workdir(folder)
  if not workdir.checkpoints.exists():
    return []
  with open_checkpoints(workdir) as checkpoints:
    return checkpoints.steps()


@contextlib.contextmanager
def open_checkpoints(workdir: Workdir) -> Iterator[Checkpoints]:
  """A run's checkpoints, to read.

  Raises:
    CheckpointError: it has none yet.
  """
  if not workdir.checkpoints.exists():
    raise CheckpointError(f"{workdir.root} has no checkpoint yet")
  checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def vocabulary_of(trained: Trained) -> Vocabulary:
  """The vocabulary that the checkpoint was trained with; raises as `stored_vocabulary`."""
  return stored_vocabulary(trained.config, trained.vocabulary)


def stored_vocabulary(config: ExperimentConfig, about: Mapping[str, Any]) -> Vocabulary:
  """The vocabulary that a run was trained with: the workdir's own copy, which needs no data.

  Args:
    config: of the run.
    about: what its checkpoint says of the vocabulary.

  Raises:
    ConfigError: there is no copy, and the file of the config is missing or has changed.
  """
  data = config.data
  name = "bytes" if about["name"] == "bytes" else data.vocabulary
  if name:
    with in_section("config.data"):
      vocabulary = load_vocabulary(name, about.get("extra_ids", data.extra_ids))
  else:
    vocabulary = make_vocabulary(data)
  _check(about, vocabulary)
  return vocabulary


def check_vocabulary(trained: Trained, vocabulary: Vocabulary) -> None:
  """Raises `ConfigError` unless `vocabulary` is the one that the checkpoint was trained with."""
  _check(trained.vocabulary, vocabulary)


def _check(old: Mapping[str, Any], vocabulary: Vocabulary) -> None:
  wanted = f"expected the checkpoint's vocabulary, {old['name']}"
  sizes = f"{wanted}: it has {old['size']} tokens, this one {vocabulary.size}"
  require(vocabulary.size >= old["size"], "config.data.vocabulary", vocabulary.name, sizes)
  require(vocabulary.fingerprint == old["fingerprint"], "config.data.vocabulary", vocabulary.name, wanted)
