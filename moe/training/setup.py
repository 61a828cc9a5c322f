"""What a config trains with: optimizer, state and step, the same for a run, its plan and its benchmark."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moe.training.experiment import ExperimentConfig
from moe.training.state import Stored, TrainState, abstract_model, abstract_state, keys, make_state
from moe.training.step import RunInputs, make_eval_step, make_train_step


class Setup:
  """A config on a mesh. No model is computed or allocated before `first_state`; steps compile when first called.

  Attributes:
    mesh: of the devices that hold all arrays.
    graph: the model's structure.
    optimizer: Optax's transformation.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
  """

  def __init__(self, config: ExperimentConfig, mesh: Mesh):
    config.check_mesh(mesh)
    self._config, self.mesh = config, mesh
    self._key = np.asarray(jax.random.key_data(keys(config.seed)[1]))
    self._schedule = config.optimizer.make_schedule(config.train.steps)
    model = abstract_model(config.model.make, mesh, fsdp=config.mesh.fsdp)
    self.graph = model.graph
    self.optimizer = config.optimizer.make(model.stacked)
    self.abstract = abstract_state(model, self.optimizer, mesh)

  def first_state(self, stored: Stored) -> TrainState:
    """The state at step 0; `stored` is from `stored_router_state`."""
    return make_state(self._config.model.make, self.optimizer, self._config.seed, self.abstract, stored)

  def train_step(self, byte_lengths: jax.typing.ArrayLike) -> jax.stages.Wrapped:
    """`make_train_step` of the config; `byte_lengths` `[V]` is the length of each token's text."""
    train = self._config.train
    return make_train_step(
      self.graph,
      self.abstract,
      self.optimizer,
      accumulation=train.accumulation,
      logits_z_loss=train.logits_z_loss,
      byte_lengths=byte_lengths,
    )

  def inputs(self, step: int) -> RunInputs:
    """What the train step takes beside state and batch, after `step` updates."""
    return RunInputs(self._key, np.float32(self._schedule(step)))

  def eval_step(self, byte_lengths: jax.typing.ArrayLike) -> Callable[..., dict[str, Any]]:
    """`make_eval_step` of the config."""
    accumulation = self._config.train.accumulation
    return make_eval_step(self.graph, byte_lengths, accumulation=accumulation, mesh=self.mesh)
