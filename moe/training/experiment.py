"""The training section of a config, the whole tree, and the checks across its sections."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe.config import ConfigError, build, require
from moe.data.data_config import DataConfig
from moe.models import ModelConfig
from moe.parallel.mesh import MeshConfig, check_rows
from moe.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, and when to look and save.

  Attributes:
    steps: updates of the whole run.
    accumulation: micro-batches that a batch is cut into, one after the other, to save memory.
    logits_z_loss: weight of the squared log normaliser of the logits (T5's is 1e-4).
    log_every: steps between records of training metrics.
    eval_every: steps between validations; there is one more at the last step.
    eval_batches: batches of a validation, the split's first ones, which may be untypical; 0 takes the whole split.
    checkpoint_every: steps between checkpoints; there is one more at the last step.
    keep: newest checkpoints to keep; the one with the best validation loss stays besides.
    compilation_cache: where compiled programs are kept between runs; empty means the user's cache folder.
  """

  steps: int
  accumulation: int = 1
  logits_z_loss: float = 0.0
  log_every: int = 10
  eval_every: int = 500
  eval_batches: int = 0
  checkpoint_every: int = 500
  keep: int = 2
  compilation_cache: str = ""

  def __post_init__(self):
    for name in ("steps", "accumulation", "log_every", "eval_every", "checkpoint_every", "keep"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
    for name in ("logits_z_loss", "eval_batches"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a run; `mesh` only where it is computed."""

  seed: int
  model: ModelConfig
  data: DataConfig
  optimizer: OptimizerConfig
  train: TrainConfig
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  def __post_init__(self):
    require(self.seed >= 0, "seed", self.seed, "must not be negative")
    warmup, steps = self.optimizer.warmup_steps, self.train.steps
    require(warmup <= steps, "optimizer.warmup_steps", warmup, f"must not be more than train.steps = {steps}")
    batch, parts = self.data.batch_size, self.train.accumulation
    require(batch % parts == 0, "train.accumulation", parts, f"must divide data.batch_size = {batch}")
    try:
      self.model.check_batches(batch // parts, self.data.inputs_length, self.data.targets_length)
    except ConfigError as error:
      raise error.under("model") from None

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises `ConfigError` unless the model and its batches can be divided over the mesh."""
    self.model.check_mesh(mesh)
    check_rows(
      mesh, self.data.batch_size // self.train.accumulation, "config.data.batch_size / config.train.accumulation"
    )


def load_config(config: ConfigDict | Mapping[str, Any]) -> ExperimentConfig:
  """The checked dataclasses of a config file's tree.

  Raises:
    ConfigError: the first wrong field, or the first combination that cannot work.
  """
  return build(ExperimentConfig, config.to_dict() if isinstance(config, ConfigDict) else config)
