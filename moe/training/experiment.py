"""An experiment: its training section, the whole tree of its config, and the checks across sections."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe.config import build, in_section, require
from moe.data.data_config import DataConfig
from moe.models import ModelConfig
from moe.parallel.mesh import MeshConfig, check_rows
from moe.training.optimization.optimizer import Adafactor, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, and when to log, validate and save.

  Attributes:
    steps: updates of the whole run.
    accumulation: micro-batches per batch, computed one after the other to save memory.
    logits_z_loss: weight of the squared log normaliser of the logits (T5's is 1e-4).
    log_every: steps between records of training metrics, means over these steps; the last step has one too.
    eval_every: steps between validations; the last step has one too.
    eval_batches: batches per validation, the first ones of the split; 0 for the whole split.
    checkpoint_every: steps between checkpoints; the last step has one too.
    keep: newest checkpoints to keep, besides the one with the best validation loss.
    compilation_cache: folder of compiled programs, kept between runs; empty for the user's cache folder.
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

  def __post_init__(self) -> None:
    for name in ("steps", "accumulation", "log_every", "eval_every", "checkpoint_every", "keep"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
    for name in ("logits_z_loss", "eval_batches"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "expected at least 0")

  def logs_at(self, step: int) -> bool:
    """Whether the metrics of this step are recorded."""
    return step % self.log_every == 0 or step == self.steps

  def validates_at(self, step: int) -> bool:
    """Whether validation follows this step."""
    return step > 0 and (step % self.eval_every == 0 or step == self.steps)

  def saves_at(self, step: int) -> bool:
    """Whether a checkpoint follows this step."""
    return step % self.checkpoint_every == 0 or step == self.steps


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a run. `mesh` changes where it is computed, not what."""

  seed: int
  model: ModelConfig
  data: DataConfig
  train: TrainConfig
  optimizer: OptimizerConfig = dataclasses.field(default_factory=Adafactor)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  def __post_init__(self) -> None:
    require(self.seed >= 0, "seed", self.seed, "expected at least 0")
    warmup, steps = self.optimizer.schedule.warmup_steps, self.train.steps
    wanted = f"expected at most train.steps = {steps}"
    require(warmup <= steps, "optimizer.schedule.warmup_steps", warmup, wanted)
    batch, parts = self.data.batch_size, self.train.accumulation
    require(batch % parts == 0, "train.accumulation", parts, f"expected a divisor of data.batch_size = {batch}")
    with in_section("data"):
      self.data.objective.check_format(self.model.row_format)

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises `ConfigError` unless the mesh divides the model and its batches."""
    self.model.check_mesh(mesh)
    check_rows(
      mesh, self.data.batch_size // self.train.accumulation, "config.data.batch_size / config.train.accumulation"
    )


def load_config(config: ConfigDict | Mapping[str, Any]) -> ExperimentConfig:
  """The checked dataclasses of a config file's tree.

  Raises:
    ConfigError: the first wrong field, or the first combination that cannot work.
  """
  built = build(ExperimentConfig, config)
  # Not in `__post_init__`: a model may be evaluated on batches that its routers could not be trained with.
  rows = built.data.batch_size // built.train.accumulation
  with in_section("config.model"):
    built.model.check_batches(rows, built.data.inputs_length, built.data.targets_length)
  return built
