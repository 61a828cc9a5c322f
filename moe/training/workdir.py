"""The folder of a run: where its files lie, and that it holds one run only."""

import json
import pathlib

from moe.config import ConfigError, as_mapping, differences
from moe.training.experiment import ExperimentConfig, load_config

# Fields that change what is written and when, but no number of the run; as does the section mesh.
_FREE = ("log_every", "eval_every", "eval_batches", "checkpoint_every", "keep", "compilation_cache")
# Schedules that do not look at the run's length: such a run may be made longer.
_ENDLESS = ("constant", "constant_rsqrt")


class WorkdirError(RuntimeError):
  """What the run finds on disk does not let it go on."""


class Workdir:
  """Paths of a run.

  Attributes:
    root: the folder itself; config: the run's config; metrics: one JSON object a line; checkpoints: Orbax's folder;
    tensorboard: event files; figure: the loss curves.
  """

  def __init__(self, path: str | pathlib.Path):
    self.root = pathlib.Path(path).absolute()
    self.config = self.root / "config.json"
    self.metrics = self.root / "metrics.jsonl"
    self.checkpoints = self.root / "checkpoints"
    self.tensorboard = self.root / "tensorboard"
    self.figure = self.root / "loss.png"

  def check(self, config: ExperimentConfig) -> None:
    """Whether this config may run here; writes nothing.

    Raises:
      WorkdirError: the folder holds another config's run (the message lists the fields that differ), or a run whose
        config is lost.
    """
    if self.config.exists():
      self._check_same(config)
    elif self.checkpoints.exists() or self.metrics.exists():
      raise WorkdirError(f"{self.root} holds a run without its config.json; choose another --workdir")

  def claim(self, config: ExperimentConfig) -> None:
    """Makes the folder this config's, unless it is already; call `check` first.

    Raises:
      WorkdirError: it cannot be written to.
    """
    if self.config.exists():
      return
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      write_new(self.config, json.dumps(as_mapping(config), indent=2) + "\n")
    except OSError as error:
      raise WorkdirError(f"cannot write to --workdir {self.root}: {error.strerror}") from None

  def load_config(self) -> ExperimentConfig:
    """The config of the run that lies here.

    Raises:
      WorkdirError: there is none, or none that this version can read.
    """
    if not self.config.exists():
      raise WorkdirError(f"{self.root} holds no run: there is no config.json")
    try:
      return load_config(json.loads(self.config.read_text()))
    except (ValueError, ConfigError) as error:
      raise WorkdirError(f"{self.config} cannot be read: {error}") from None

  def _check_same(self, config: ExperimentConfig) -> None:
    free = [f"config.train.{name}" for name in _FREE]
    if config.optimizer.schedule in _ENDLESS:
      free.append("config.train.steps")
    found = differences(as_mapping(self.load_config()), as_mapping(config))
    found = {f: values for f, values in found.items() if f not in free and not f.startswith("config.mesh.")}
    if found:
      listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in found.items())
      raise WorkdirError(f"{self.root} holds another config's run: {listed}. Choose another --workdir")


def write_new(path: pathlib.Path, text: str) -> None:
  """Writes a file that must not exist yet; a kill leaves the whole file or none."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  try:
    path.hardlink_to(part)
  finally:
    part.unlink()
