"""Starting from another run's checkpoint: what its config hands down, whether it fits, and its arrays.

A run whose config has the section `init` takes parameters and the routers' state from there; its optimizer and its step
count are reset. The other workdir, the source, is only read, and is no longer needed once the run has a checkpoint
itself, unless the run is held to what the source predicts (`init.kl_loss`).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moe.config import ConfigError, Text, as_mapping, build, override, require
from moe.data import SourceConfig, Vocabulary
from moe.training.checkpoint import CheckpointError, Checkpoints, read_about
from moe.training.experiment import InitConfig
from moe.training.optimization.parts import by_path
from moe.training.state import TrainState
from moe.training.workdir import Workdir, WorkdirError

T = TypeVar("T")

_FIELD = "config.init.workdir"


def inherit(tree: ConfigDict | Mapping[str, Any], folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
  """A config's tree, completed by the model section and the vocabulary of the run that it begins from.

  The fields that the tree gives itself stay; a section that it gives with another `name` is a new choice. Its `init` is
  settled if there is a workdir. A tree without `init` is returned as it is.

  Args:
    tree: of a config, a mapping or a `ConfigDict`, in which `model`, `data.vocabulary` and `data.extra_ids` may be
      missing, wholly or partly.
    folder: workdir of the new run, if there is one. Once it holds a run, the tree is completed by the config of that.

  Raises:
    ConfigError: there is no source, or no such checkpoint; or the tree gives a field that its model cannot have.
  """
  tree = tree.to_dict() if isinstance(tree, ConfigDict) else dict(tree)
  if not isinstance(_read(tree.get("init")), Mapping):
    return tree
  init = build(InitConfig, tree["init"], "config.init")
  own = None if folder is None else Workdir(folder)
  source, begun = _source(init, own), None if own is None else own.stored()
  base = begun or _handed_down(source, init)
  if own is not None:
    tree["init"] = as_mapping(settle(init, own))
  model, data = (_read(tree.get(name)) for name in ("model", "data"))
  if isinstance(model, Mapping | None):
    tree["model"] = _laid_over(base, model or {})
  if isinstance(data, Mapping | None) and not _stores_vocabulary((data or {}).get("source")):
    given = {name: value for name, value in (data or {}).items() if name != "vocabulary" or value}
    tree["data"] = {name: base["data"][name] for name in ("vocabulary", "extra_ids")} | given
  return tree


def settle(init: InitConfig, workdir: Workdir) -> InitConfig:
  """The section with an absolute path and the number of the step, so that "best" stays what it was at first.

  Args:
    init: of a run.
    workdir: of the run. Once it holds a run, the source is not read.

  Raises:
    ConfigError: there is no source, or it has no such checkpoint.
  """
  source, begun, step = _source(init, workdir), workdir.stored(), init.step
  if begun is None:
    number = _opened(source, init, lambda checkpoints: checkpoints.find(step, "config.init.step"))
    step = str(multihost_utils.broadcast_one_to_all(np.int32(number)) if jax.process_count() > 1 else number)
  elif not step.isdecimal():
    step = (begun.get("init") or {}).get("step", step)
  return dataclasses.replace(init, workdir=str(source.root), step=step)


class InitSource:
  """The checkpoint that a run begins from. Only its description is read until `restore`.

  Args:
    init: that is settled.

  Attributes:
    about: what it says of its run, see `Checkpoints.save`.

  Raises:
    ConfigError: it is gone or damaged.
  """

  def __init__(self, init: InitConfig):
    self._init, self._workdir = init, _source(init)
    self._shapes, self.about = self._opened(lambda checkpoints: checkpoints.describe(int(init.step)))

  def check(self, abstract: TrainState, vocabulary: Vocabulary, router_files: str | None) -> None:
    """Raises `ConfigError` with the names of all that does not fit.

    Args:
      abstract: the state of the new run.
      vocabulary: of its data.
      router_files: fingerprint of what its routers read from files.
    """
    ours = {path: _shape(leaf) for path, leaf in by_path([abstract.params, abstract.router_state]).items()}
    theirs = {path: _shape(leaf) for path, leaf in by_path(list(self._shapes.values())).items()}
    old, both = self.about["vocabulary"], [path for path in ours if path in theirs]
    parts = {
      "it lacks": [f"{path} {ours[path]}" for path in ours if path not in theirs],
      "it has besides": [f"{path} {theirs[path]}" for path in theirs if path not in ours],
      "of other shapes": [f"{path} {theirs[path]} for {ours[path]}" for path in both if theirs[path] != ours[path]],
    }
    if (old["size"], old["fingerprint"]) != (vocabulary.size, vocabulary.fingerprint):
      names = f"{old['name']!r} ({old['size']} tokens) for {vocabulary.name!r} ({vocabulary.size})"
      parts["of another vocabulary"] = [names]
    if self.about.get("router_files") != router_files:
      parts["with other content"] = ["the files of its routers"]
    misfits = "; ".join(f"{what}: {', '.join(which)}" for what, which in parts.items() if which)
    require(not misfits, _FIELD, self._init.workdir, f"expected what fits this config's model and data; {misfits}")

  def restore(self, abstract: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its parameters and its routers' state, with the shardings of the new run's state.

    Raises:
      ConfigError: it is gone or damaged.
    """
    step, arrays = int(self._init.step), (abstract.params, abstract.router_state)
    params, router_state, _ = self._opened(lambda checkpoints: checkpoints.restore_model(step, *arrays))
    print(f"starting from {self._workdir.checkpoints / str(step)}", flush=True)
    return params, router_state

  def _opened(self, read: Callable[[Checkpoints], T]) -> T:
    return _opened(self._workdir, self._init, read)


def _source(init: InitConfig, own: Workdir | None = None) -> Workdir:
  """The workdir to begin from, which need not exist, but is not the run's own, nor around it (`ConfigError`)."""
  source = Workdir(init.workdir, _FIELD)
  ours = None if own is None else own.root.resolve()
  another = ours is None or (
    ours != source.root.resolve() and source.checkpoints.resolve() not in (ours, *ours.parents)
  )
  require(another, _FIELD, init.workdir, "expected the folder of another run than --workdir")
  return source


def _opened(source: Workdir, init: InitConfig, read: Callable[[Checkpoints], T]) -> T:
  """What `read` finds in the checkpoints of a source; its errors are of the section `init`."""
  has_some = source.checkpoints.is_dir()
  require(has_some, _FIELD, init.workdir, f"expected the folder of a run; there is no folder {source.checkpoints}")
  checkpoints = Checkpoints(source.checkpoints, read_only=True)
  try:
    return read(checkpoints)
  except CheckpointError as error:
    raise ConfigError(_FIELD, init.workdir, f"expected checkpoints that can be read: {error}") from None
  finally:
    checkpoints.close()


def _handed_down(source: Workdir, init: InitConfig) -> dict[str, Any]:
  """The tree of a source's config, with the vocabulary that its checkpoints were trained with."""
  try:
    tree = as_mapping(source.load_config())
  except WorkdirError as error:
    raise ConfigError(_FIELD, init.workdir, f"expected the folder of a run: {error}") from None
  vocabulary = read_about(source.checkpoints).get("vocabulary", {})
  name = {"data.vocabulary": "bytes"} if vocabulary.get("name") == "bytes" else {}
  extra_ids = {"data.extra_ids": vocabulary["extra_ids"]} if "extra_ids" in vocabulary else {}
  return override(tree, (name | extra_ids).items())


def _laid_over(base: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
  """The model section of `base` under the given fields."""
  old, new = base["model"]["name"], model.get("name", base["model"]["name"])
  require(old == new, "config.model.name", new, f"expected {old!r}, as in config.init.workdir")
  return override(base, _fields(model, base["model"], "model"))["model"]


def _fields(section: Mapping[str, Any], base: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
  """The given fields of a section by their dotted names, for `override`.

  Raises:
    ConfigError: one belongs to a section that `base` does not have, such as the MoE layers of a dense model.
  """
  for name, given in section.items():
    field, value, old = f"{path}.{name}", _read(given), base.get(name, "")
    if not isinstance(value, Mapping):
      yield field, given
      continue
    if old is None:
      first = next((f"{field}.{inner}" for inner in value), field)
      lacking = f"expected a field of the model in config.init.workdir, whose {field.removeprefix('model.')} is None"
      raise ConfigError(f"config.{first}", next(iter(value.values()), value), lacking)
    same = isinstance(old, Mapping) and value.get("name", old.get("name")) == old.get("name")
    yield from _fields(value, old, field) if same else [(field, value)]


def _read(value: Any) -> Any:
  """A section that may have been given as text, on a command line."""
  return value.read() if isinstance(value, Text) else value


def _stores_vocabulary(source: Any) -> bool:
  """Whether a data source, as a config gives it, knows its vocabulary itself."""
  source = _read(source)
  name = source.get("name") if isinstance(source, Mapping) else source
  choice = SourceConfig.choices.get(name) if isinstance(name, str) else None
  return choice is not None and choice.stores_vocabulary


def _shape(leaf: Any) -> str:
  """Such as `float32[4, 8]`."""
  return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
