"""The folder of a run, on a disk or in a bucket: the paths of its files, and checks that it holds one run, and one
process.

A folder belongs to a run once its first checkpoint is complete: only then is `config.json` written. Until then any
config may try, and what an earlier try had logged is moved aside.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from moe.config import ConfigError, UserError, as_mapping, differences, override, require
from moe.files import AnyPath, in_bucket, make_folder, move, open_path, os_errors, read_bytes, size_of, write_whole
from moe.parallel.lock import LockedError, lock
from moe.training.checkpoint import read_about
from moe.training.experiment import ExperimentConfig, load_config

# Fields of config.train and config.data that change what is written and when, but no number of the run. So does
# config.mesh; and on_bad_record changes only what follows a line that would have ended the run.
_FREE = ("log_every", "eval_every", "eval_batches", "checkpoint_every", "keep", "compilation_cache")
_FREE_OF_DATA = ("source.on_bad_record", "prefetch")
# Files may move: vocabularies, data and routers' files are compared by what is in them, when they are opened.
_DATA_PATHS = ("vocabulary", "source.path", "source.validation_path", "source.data_dir")
_ROUTER_PATHS = ("table", "centroids")


class WorkdirError(UserError):
  """The workdir holds something else than this run, or cannot be written to."""


class Workdir:
  """Paths of a run.

  Args:
    path: of the folder, given as `flag`.

  Attributes:
    root: the folder itself.
    config: the run's config, with absolute paths.
    vocabulary: the run's own copy of its SentencePiece model, if it has one.
    metrics: one JSON object per line.
    checkpoints: Orbax's folder.
    tensorboard: folder of event files.
    figure: the loss curves.
    scores: of tasks, made of the metrics.
    predictions: folder of the answers to tasks' examples.

  Raises:
    ConfigError: the path is empty, a URL of something else than a bucket of `gs://`, or one under which checkpoints
      could not be found again.
  """

  def __init__(self, path: str | os.PathLike[str], flag: str = "--workdir"):
    given = os.fspath(path)
    wanted = "expected a folder, or gs://BUCKET/PATH: Orbax cannot write checkpoints to s3://; mount the bucket"
    require(not given.startswith("s3://"), flag, given, wanted)
    self.root = open_path(flag, given)
    _check_name(flag, self.root)
    self.config = self.root / "config.json"
    self.vocabulary = self.root / "vocabulary.model"
    self.metrics = self.root / "metrics.jsonl"
    self.checkpoints = self.root / "checkpoints"
    self.tensorboard = self.root / "tensorboard"
    self.figure = self.root / "loss.png"
    self.scores = self.root / "scores.json"
    self.predictions = self.root / "predictions"
    self._data_error = self.root / "data_error.json"

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Creates the folder and keeps other runs out of it; at the end it is removed again if nothing was written.

    Raises:
      WorkdirError: another run is using it, or it cannot be written to.
    """
    around = () if in_bucket(self.root) else (self.root, *self.root.parents)
    created = [folder for folder in around if not folder.exists()]
    with contextlib.ExitStack() as stack:
      stack.callback(_remove_empty, created)
      try:
        make_folder(self.root)
        stack.enter_context(lock(self.root / "lock"))
      except LockedError as error:
        raise WorkdirError(f"--workdir {self.root} is in use by {error}; choose another, or end that run") from None
      except OSError as error:
        raise self._not_writable(error) from None
      yield

  def check(self, config: ExperimentConfig) -> None:
    """Checks that this config may run here; writes nothing.

    Raises:
      WorkdirError: the folder holds the run of another config (the message lists the fields that differ).
    """
    old, new = self.stored(), as_mapping(config)
    if old is None:
      return
    free = {f"config.train.{name}" for name in _FREE} | {f"config.{name}" for name in (*_paths(old), *_paths(new))}
    free |= {f"config.data.{name}" for name in _FREE_OF_DATA}
    if not config.optimizer.schedule.depends_on_length:
      free.add("config.train.steps")
    # Read and written again, since an older version may have written fewer fields.
    found = differences(as_mapping(self._load(old)), new)
    found = {f: values for f, values in found.items() if f not in free and not f.startswith("config.mesh.")}
    if found:
      listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in found.items())
      raise WorkdirError(f"{self.root} holds the run of another config: {listed}; choose another --workdir")

  def claim(self, config: ExperimentConfig, vocabulary: bytes | None = None) -> None:
    """Makes the folder that of a run: writes its config, with where its files are now, and once its vocabulary.

    Args:
      config: of the run.
      vocabulary: the SentencePiece model, if there is one.

    Raises:
      WorkdirError: it cannot be written to.
    """
    try:
      make_folder(self.root)
      if vocabulary is not None and not self.vocabulary.exists():
        write_whole(self.vocabulary, vocabulary)
      write_whole(self.config, json.dumps(with_absolute_paths(config), indent=2) + "\n")
    except OSError as error:
      raise self._not_writable(error) from None

  def set_aside(self) -> None:
    """Moves the records of an earlier try, of which nothing was saved, to a folder of their own.

    Raises:
      WorkdirError: it cannot be written to.
    """
    with contextlib.suppress(FileNotFoundError):
      if size_of(self.metrics) > 0:
        self._set_aside()

  def _set_aside(self) -> None:
    number = 1
    while (target := self.root / f"earlier-{number}").exists():
      number += 1
    try:
      make_folder(target)
      for path in (self.tensorboard, self.scores, self.predictions, self.metrics):
        if path.exists():
          move(path, target / path.name)
    except OSError as error:
      raise self._not_writable(error) from None
    print(f"nothing was saved by an earlier try; its records are now in {target}", flush=True)

  def note_data_error(self, step: int, error: str) -> None:
    """Remembers after which step the data could not be read: they may be repaired before the run resumes."""
    with contextlib.suppress(OSError):
      write_whole(self._data_error, json.dumps({"step": step, "error": error}) + "\n")

  def step_of_data_error(self) -> int | None:
    """The step after which the run stopped because the data could not be read, the last time that happened."""
    try:
      return json.loads(read_bytes(self._data_error))["step"]
    except (OSError, ValueError, KeyError):
      return None

  def stored(self) -> dict[str, Any] | None:
    """The tree of the run's config: from a file of its own, or from a checkpoint if a kill came before that.

    None if the folder holds no run.

    Raises:
      WorkdirError: the file cannot be read.
    """
    try:
      return json.loads(read_bytes(self.config))
    except (FileNotFoundError, NotADirectoryError):
      return self._stored_by_checkpoint()
    except (OSError, ValueError) as error:
      raise WorkdirError(f"{self.config} cannot be read: {error}") from None

  def _stored_by_checkpoint(self) -> dict[str, Any] | None:
    try:
      with os_errors(self.checkpoints):
        return read_about(self.checkpoints).get("config")
    except OSError as error:
      raise WorkdirError(f"{self.checkpoints} cannot be read: {error.strerror}") from None

  def load_config(self) -> ExperimentConfig:
    """The config of the run in this folder, with the folder's own copy of the vocabulary.

    Raises:
      WorkdirError: there is none, or this version cannot read it.
    """
    tree = self.stored()
    if tree is None:
      raise WorkdirError(f"{self.root} holds no run: config.json is written with the first checkpoint")
    if self.vocabulary.exists():
      tree = override(tree, [("data.vocabulary", str(self.vocabulary))])
    return self._load(tree)

  def with_vocabulary(self, config: ExperimentConfig) -> ExperimentConfig:
    """The config with the folder's own copy of the vocabulary where the file that it names has gone."""
    if not self.vocabulary.exists():
      return config
    with contextlib.suppress(ConfigError):  # of an empty path
      if open_path("config.data.vocabulary", config.data.vocabulary).exists():
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=str(self.vocabulary)))

  def _load(self, tree: dict[str, Any]) -> ExperimentConfig:
    try:
      return load_config(tree)
    except ConfigError as error:
      raise WorkdirError(f"{self.config} cannot be read: {error}") from None

  def _not_writable(self, error: OSError) -> WorkdirError:
    return WorkdirError(f"cannot write to --workdir {self.root}: {error.strerror}")


def with_absolute_paths(config: ExperimentConfig) -> dict[str, Any]:
  """The config's tree as it is stored, which means the same from any folder."""
  tree = as_mapping(config)
  absolute = {
    name: os.path.abspath(os.path.expanduser(path)) for name, path in _paths(tree).items() if "://" not in path
  }
  return override(tree, absolute.items())


def router_paths(tree: Mapping[str, Any]) -> dict[str, str]:
  """The files that routers begin with, by their fields in a config's tree."""
  return {name: path for name, path in _paths(tree).items() if name.startswith("model.")}


def _paths(tree: Mapping[str, Any]) -> dict[str, str]:
  """The fields of a config's tree that hold paths, by their dotted names."""
  named = [f"data.{name}" for name in _DATA_PATHS]
  named += [f"model.{stack}.moe.router.{name}" for stack in ("encoder", "decoder") for name in _ROUTER_PATHS]
  found = {name: _at(tree, name) for name in named}
  return {name: value for name, value in found.items() if isinstance(value, str) and value not in ("", "bytes")}


def _at(tree: Any, name: str) -> Any:
  for part in name.split("."):
    tree = tree.get(part) if isinstance(tree, Mapping) else None
  return tree


def _check_name(flag: str, root: AnyPath) -> None:
  """Orbax searches its folders by patterns and cuts URLs at `#`, and TensorStore names files in UTF-8."""
  refused = "*?[]\\#" if in_bucket(root) else "*?[]\\"
  wanted = f"expected a path without any of {' '.join(refused)}, in which checkpoints cannot be found again"
  require(not set(refused) & set(str(root)), flag, str(root), wanted)
  try:
    str(root).encode()
  except UnicodeEncodeError:
    raise ConfigError(flag, str(root), "expected a path in UTF-8") from None


def _remove_empty(folders: list[AnyPath]) -> None:
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.rmdir()
