"""The folder of a run: the paths of its files, and a check that it holds one run only."""

import json
import pathlib

from moe.config import ConfigError, UserError, as_mapping, differences
from moe.training.experiment import ExperimentConfig, load_config

# Fields of config.train that change what is written and when, but no number of the run. So does config.mesh; and
# on_bad_record changes only what follows a line that would have ended the run.
_FREE = ("log_every", "eval_every", "eval_batches", "checkpoint_every", "keep", "compilation_cache")


class WorkdirError(UserError):
  """The workdir holds something else than this run, or cannot be written to."""


class Workdir:
  """Paths of a run.

  Attributes:
    root: the folder itself.
    config: the run's config.
    metrics: one JSON object per line.
    checkpoints: Orbax's folder.
    tensorboard: folder of event files.
    figure: the loss curves.
  """

  def __init__(self, path: str | pathlib.Path):
    self.root = pathlib.Path(path).absolute()
    self.config = self.root / "config.json"
    self.metrics = self.root / "metrics.jsonl"
    self.checkpoints = self.root / "checkpoints"
    self.tensorboard = self.root / "tensorboard"
    self.figure = self.root / "loss.png"

  def check(self, config: ExperimentConfig) -> None:
    """Checks that this config may run here; writes nothing.

    Raises:
      WorkdirError: the folder holds the run of another config (the message lists the fields that differ), or a run
        without its config.
    """
    if self.config.exists():
      self._check_same(config)
    elif self.checkpoints.exists() or self.metrics.exists():
      raise WorkdirError(f"{self.root} holds a run without its config.json; choose another --workdir")

  def claim(self, config: ExperimentConfig) -> None:
    """Creates the folder with this config, unless it is there already; call `check` first.

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
    """The config of the run in this folder.

    Raises:
      WorkdirError: there is none, or this version cannot read it.
    """
    if not self.config.exists():
      raise WorkdirError(f"{self.root} holds no run: there is no config.json")
    try:
      return load_config(json.loads(self.config.read_text()))
    except (ValueError, ConfigError) as error:
      raise WorkdirError(f"{self.config} cannot be read: {error}") from None

  def _check_same(self, config: ExperimentConfig) -> None:
    free = [f"config.train.{name}" for name in _FREE] + ["config.data.source.on_bad_record"]
    if not config.optimizer.schedule.depends_on_length:
      free.append("config.train.steps")
    found = differences(as_mapping(self.load_config()), as_mapping(config))
    found = {f: values for f, values in found.items() if f not in free and not f.startswith("config.mesh.")}
    if found:
      listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in found.items())
      raise WorkdirError(f"{self.root} holds the run of another config: {listed}; choose another --workdir")


def write_new(path: pathlib.Path, text: str) -> None:
  """Writes a file that does not exist yet (else FileExistsError); a kill leaves the whole file or none."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  try:
    path.hardlink_to(part)
  finally:
    part.unlink()
