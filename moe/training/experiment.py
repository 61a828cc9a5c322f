"""An experiment: its training section, the whole tree of its config, and the checks across sections."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jax.sharding import Mesh
from ml_collections import ConfigDict

from moe.config import build, in_section, require
from moe.data.data_config import DataConfig
from moe.data.sources.task import TaskConfig
from moe.models import ModelConfig
from moe.parallel.mesh import MeshConfig, check_rows
from moe.row_format import PictureFormat
from moe.training.optimization.optimizer import Adafactor, OptimizerConfig

# The kinds of records of scores, by the split that is scored.
VALIDATION, HELD_OUT = "score/validation", "score/held_out"


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
    keep: newest checkpoints to keep, besides the best one: of the lowest validation loss or, in a run with a section
      `score`, of the highest score.
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
class InitConfig:
  """The checkpoint of another run to start from, in place of random parameters; see `moe.training.init`.

  Attributes:
    workdir: of that run, or a folder that `moe.convert` has made.
    step: a number, "latest", or "best" by its validation (the latest where there was none). The config that a run
      stores has the number.
    kl_loss: weight of the mean over target tokens of KL(source || model), in nats, between what the source predicts
      and what this model does: output regularisation, against forgetting (Li and Hoiem 2016; Lifelong-MoE, Chen et al.
      2023). It costs a forward pass of the source, which is read again where the run resumes.
  """

  workdir: str
  step: str = "best"
  kl_loss: float = 0.0

  def __post_init__(self) -> None:
    require(self.kl_loss >= 0, "kl_loss", self.kl_loss, "expected at least 0")
    require(bool(self.workdir.strip()), "workdir", self.workdir, "expected the folder of a run to begin from")
    known = self.step in ("best", "latest") or self.step.isdecimal()
    require(known, "step", self.step, "expected 'best', 'latest' or a number")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """How the answers to a task are scored, wherever validation is due, and which step is chosen by the scores.

  A step that is scored is also saved, since it may be the best. In a mixture every task is scored, and a step's score
  is the mean of the tasks' metrics, none weighted.

  Attributes:
    method: "rank" takes the label whose text, EOS included, has the highest log-likelihood, summed over its tokens;
      "decode" the greedily written text, which counts if it is the label's after the task's postprocessing.
    selection: what the best step is chosen by. "held_out" trains on the first 90% of the training split and chooses by
      the score on its last tenth: the validation split has no part in the choice, so its score at that step is honest.
      "published" trains on the whole split and takes the best on the validation split, as T5 does (Raffel et al. 2020,
      section 3.1.2).
    metric: the metric by which a step is chosen; empty for each task's primary one.
    batch_size: rows of a batch that is scored; 0 for as many as in training.
    labels: their texts, for "rank" and a task that does not name its own.
    examples: of each split, the first ones; 0 for all, as where labels are hidden.
  """

  method: Literal["rank", "decode"] = "rank"
  selection: Literal["held_out", "published"] = "held_out"
  metric: str = ""
  batch_size: int = 0
  labels: tuple[str, ...] = ()
  examples: int = 0

  def __post_init__(self) -> None:
    for name in ("batch_size", "examples"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "expected at least 0")
    given = self.labels
    require(len(set(given)) == len(given) != 1, "labels", given, "expected at least two texts, all different, or none")
    require(self.method == "rank" or not given, "labels", given, "expected none unless method = 'rank'")

  @property
  def chosen_by(self) -> str:
    """The kind of record whose mean score chooses the best step."""
    return HELD_OUT if self.selection == "held_out" else VALIDATION

  def splits(self, source: TaskConfig) -> dict[str, str]:
    """The splits that are scored, as the source names them, by the kind of their record."""
    held_out = {HELD_OUT: f"{source.train_split}[90%:]"} if self.selection == "held_out" else {}
    return held_out | {VALIDATION: source.validation_split}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a run. `mesh` changes where it is computed, not what; `score` is for tasks."""

  seed: int
  model: ModelConfig
  data: DataConfig
  train: TrainConfig
  optimizer: OptimizerConfig = dataclasses.field(default_factory=Adafactor)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  init: InitConfig | None = None
  score: ScoreConfig | None = None

  def __post_init__(self) -> None:
    require(self.seed >= 0, "seed", self.seed, "expected at least 0")
    warmup, steps = self.optimizer.schedule.warmup_steps, self.train.steps
    wanted = f"expected at most train.steps = {steps}"
    require(warmup <= steps, "optimizer.schedule.warmup_steps", warmup, wanted)
    batch, parts = self.data.batch_size, self.train.accumulation
    require(batch % parts == 0, "train.accumulation", parts, f"expected a divisor of data.batch_size = {batch}")
    with in_section("data"):
      row_format = self.model.row_format
      self.data.objective.check_format(row_format)
      if isinstance(row_format, PictureFormat):
        given, tokens = self.data.inputs_length, row_format.tokens
        require(given == tokens, "inputs_length", given, f"expected {tokens}, the model's tokens of a picture")
    if self.score is not None:
      self._check_score(self.score)

  @property
  def training_data(self) -> DataConfig:
    """The data section, whose split "train" is what is trained on: not what is held out to choose the best step by."""
    source = self.data.source
    if self.score is None or self.score.selection != "held_out" or not isinstance(source, TaskConfig):
      return self.data
    return dataclasses.replace(self.data, source=dataclasses.replace(source, train_split=f"{source.train_split}[:90%]"))

  @property
  def score_rows(self) -> int:
    """Rows of a batch that is scored."""
    return (self.score.batch_size if self.score else 0) or self.data.batch_size

  def saves_at(self, step: int) -> bool:
    """Whether a checkpoint follows this step."""
    return self.train.saves_at(step) or (self.score is not None and self.train.validates_at(step))

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises `ConfigError` unless the mesh divides the model and its batches."""
    data, rows = self.data, self.data.batch_size // self.train.accumulation
    self.model.check_mesh(mesh)
    check_rows(mesh, rows, "config.data.batch_size / config.train.accumulation")
    self.model.check_groups(mesh, rows, data.inputs_length, data.targets_length)
    if self.score is not None:
      check_rows(
        mesh, self.score_rows, "config.score.batch_size" if self.score.batch_size else "config.data.batch_size"
      )

  def _check_score(self, score: ScoreConfig) -> None:
    source, objective, model = self.data.source, self.data.objective, self.model
    expected = "expected 'task', since config.score scores the answers to one"
    require(isinstance(source, TaskConfig), "data.source.name", source.name, expected)
    expected = "expected an objective that reads pairs, since config.score scores the answers to inputs"
    require(objective.reads_pairs, "data.objective.name", objective.name, expected)
    if score.method == "decode":
      router = model.decoder_router.name if model.decoder_router else None
      expected = "expected a causal router, since config.score.method = 'decode' writes token by token"
      require(not model.evaluates_on_future, "model.decoder.moe.router.name", router, expected)
    if score.selection == "held_out" and isinstance(source, TaskConfig):
      whole, expected = "[" not in source.train_split, "expected a whole split, of which a tenth can be held out"
      require(whole, "data.source.train_split", source.train_split, f"{expected}, or score.selection = 'published'")


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
