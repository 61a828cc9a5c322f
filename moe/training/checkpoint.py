"""Checkpoints: all that training needs to resume exactly, written by Orbax while training continues.

A checkpoint is a folder that is written under another name and renamed when complete, so a kill leaves a whole one or
none; in a bucket, where nothing can be renamed, its last object says that it is complete. Its items are `model`
(parameters and the routers' state, all that evaluation reads), `optimizer` (its statistics and the step), and `run`, a
JSON file with the input position, a description of the run, and a checksum of every array, because the array format
does not detect a flipped bit.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from moe.config import UserError, first_line, require
from moe.files import AnyPath, in_bucket, os_errors, read_bytes, write_whole
from moe.training.checksums import checksums
from moe.training.state import TrainState

# Where Orbax keeps the JSON of a checkpoint.
_RUN = pathlib.Path("run", "metadata")


class CheckpointError(UserError):
  """A checkpoint could not be written, or none could be read."""

  code = 1


class NonFiniteError(CheckpointError):
  """The state to save holds an infinity or a NaN."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """The content of a checkpoint; see `Checkpoints.save`."""

  state: TrainState
  position: Any
  about: dict[str, Any]
  criterion: float | None


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: of the checkpoints; created if it does not exist.
    keep: newest ones to keep, besides the best: the one of the lowest criterion, and of equal ones the last.
    read_only: for readers: nothing is created, cleaned up or saved.
    on_first: called when the first checkpoint of all is complete and has been found again.
    file_bytes: about the size of the files of arrays, of which one or two are held in memory while they are written;
      None for Orbax's, which is larger than most models.

  Raises:
    CheckpointError: the folder cannot be created.
  """

  def __init__(
    self,
    folder: AnyPath,
    keep: int = 1,
    *,
    read_only: bool = False,
    on_first: Callable[[], None] = lambda: None,
    file_bytes: int | None = None,
  ):
    self.folder, self._on_first, self._file_bytes = folder, on_first, file_bytes
    self._criteria: dict[int, float] = {}
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy([managers.LatestN(keep), _Steps(self._best_of)]),
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
      # Otherwise it fails on a damaged checkpoint before we can skip it.
      lightweight_initialize=True,
    )
    try:
      with os_errors(folder):
        self._manager = ocp.CheckpointManager(folder, options=options)
    except OSError as error:
      raise CheckpointError(f"{folder} cannot be opened: {error.strerror}") from None
    self._writing: int | None = None
    self._arrays: dict[str, int] = {}  # their number in each item of the checkpoint being written
    self._good = self.latest()

  def save(self, state: TrainState, position: Any, about: dict[str, Any], criterion: float | None = None) -> bool:
    """Starts writing a checkpoint and returns once the arrays are copied; False if the step already has one.

    Args:
      state: the training state.
      position: the input position, as JSON values.
      about: what readers need to know of the run (its config, its vocabulary), as JSON values.
      criterion: what the best one has the lowest of: the validation loss at this step, or minus its score; None for one
        that is never the best.

    Raises:
      NonFiniteError: `state` has a non-finite number; nothing is written.
      CheckpointError: this or the previous checkpoint could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return False
    self.wait()
    items = {"model": _model(state), "optimizer": _optimizer(state)}
    checks = {name: checksums(item) for name, item in items.items()}
    if not all(finite for _, finite in checks.values()):
      raise NonFiniteError(f"the state at step {step} is not finite and was not saved")
    run = {"position": position, "about": about, "criterion": criterion}
    run["checksums"] = {name: sums.tolist() for name, (sums, _) in checks.items()}
    args = {name: self._saved(item) for name, item in items.items()} | {"run": ocp.args.JsonSave(run)}
    self._writing, self._arrays = step, {name: len(jax.tree.leaves(item)) for name, item in items.items()}
    if criterion is not None:
      self._criteria[step] = criterion
    try:
      self._manager.save(step, args=ocp.args.Composite(**args))
    except Exception as error:
      raise self._failed(error) from error
    return True

  def set_criterion(self, step: int, criterion: float) -> None:
    """Gives one to a checkpoint that was saved before it could be validated.

    Raises:
      CheckpointError: its JSON cannot be read or written.
    """
    self._criteria[step] = criterion
    if jax.process_index() != 0:
      return
    path = self.folder / str(step) / _RUN
    try:
      write_whole(path, json.dumps(json.loads(read_bytes(path)) | {"criterion": criterion}))
    except (OSError, ValueError) as error:
      raise CheckpointError(f"checkpoint {step} could not be given its criterion ({first_line(error)})") from None

  def poll(self) -> None:
    """Checks, without waiting, whether the checkpoint being written is complete or has failed; raises as `wait`."""
    if self._writing is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until the checkpoint being written is complete.

    Raises:
      CheckpointError: it could not be written; the message names the last good checkpoint, which is untouched.
    """
    if self._writing is None:
      return
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(error) from error
    if self._good is None:
      self._find_again(self._writing)
    first, self._good, self._writing = self._good is None, self._writing, None
    if first:
      self._on_first()

  def close(self) -> None:
    """Waits, and releases Orbax's threads."""
    try:
      self.wait()
    finally:
      # After a failure Orbax raises it again.
      with contextlib.suppress(Exception):
        self._manager.close()

  @property
  def last_good(self) -> AnyPath | None:
    """Folder of the newest checkpoint known to be complete."""
    return None if self._good is None else self.folder / str(self._good)

  def steps(self) -> list[int]:
    """All steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest step."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step of the lowest criterion, the last of equal ones; None if no checkpoint has one."""
    return self._best_of(self._manager.all_steps())

  def find(self, step: str, field: str) -> int:
    """The number of a step.

    Args:
      step: the number, "latest", or "best", which is the latest where none was validated.
      field: in which it was given.

    Raises:
      ConfigError: there is no such step. CheckpointError: there is no checkpoint.
    """
    latest = self.latest()
    if latest is None:
      raise CheckpointError(f"there is no checkpoint under {self.folder}")
    named = {"latest": latest, "best": self.best() or latest}
    found = named | {str(number): number for number in self.steps()}
    numbers = ", ".join(map(str, self.steps()))
    require(step in found, field, step, f"expected 'best', 'latest' or one of {numbers}")
    return found[step]

  def describe(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of a step's parameters and routers' state, as stored, and its `about`; no array is read.

    Raises:
      CheckpointError: they cannot be read.
    """
    folder = self.folder / str(step)
    try:
      with _quiet():
        found: Any = ocp.StandardCheckpointHandler().metadata(folder / "model")
      return found.tree, json.loads(read_bytes(folder / _RUN))["about"]
    except Exception as error:
      raise CheckpointError(f"checkpoint {step} cannot be read: {_line(error)}") from error

  def restore(self, abstract: TrainState, notify: Callable[[str], None]) -> Restored | None:
    """The newest checkpoint that can be read, or None if there are no checkpoints.

    Newer, damaged ones are renamed to `damaged-STEP`.

    Args:
      abstract: the state's shapes, dtypes and shardings.
      notify: called with one line per damaged checkpoint.

    Raises:
      CheckpointError: there are checkpoints and none can be read; all are left unchanged.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        with _quiet():
          restored = self._read(step, abstract)
      except Exception as error:
        damaged[step] = _line(error)
        continue
      for bad, why in damaged.items():
        self._set_aside(bad)
        notify(f"checkpoint {bad} is damaged ({why}): kept as damaged-{bad}; resuming from step {step}")
      self._good = step
      return restored
    if damaged:
      step, why = next(iter(damaged.items()))
      raise CheckpointError(f"no checkpoint under {self.folder} can be read; the newest, step {step}: {why}")
    return None

  def restore_step(self, step: int, abstract: TrainState) -> Restored:
    """One step, whole; raises as `restore_model`. Nothing is renamed.

    Args:
      step: of the checkpoint.
      abstract: the state's shapes, dtypes and shardings.
    """
    with self._reading(step):
      return self._read(step, abstract)

  def restore_model(self, step: int, params: Any, router_state: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Parameters, routers' state and `about` of one step, given the shapes, dtypes and shardings of the arrays.

    Raises:
      CheckpointError: the step has no checkpoint, or a damaged one.
    """
    with self._reading(step):
      items, run = self._items(step, {"model": {"params": params, "router_state": router_state}})
    return items["model"]["params"], items["model"]["router_state"], run["about"]

  def parameters(self, step: int, params: Any) -> Iterator[tuple[tuple[str | int, ...], np.ndarray]]:
    """The path and the numbers of each parameter of one step, read one after the other.

    Args:
      step: of the checkpoint.
      params: the shapes, dtypes and shardings of all, in nested dicts.

    Raises:
      CheckpointError: as `restore_model`.
    """
    folder = self.folder / str(step)
    with self._reading(step):
      sums = _read_run(folder)["checksums"]["model"]  # those of parameters come first
    for number, (keys, leaf) in enumerate(jax.tree.leaves_with_path(params)):
      path = tuple(key.key for key in keys)
      tree = nnx.traversals.unflatten_mapping({("params", *path): leaf})
      arguments = ocp.checkpoint_utils.construct_restore_args(tree)
      with self._reading(step):
        args = ocp.args.PyTreeRestore(tree, restore_args=arguments, partial_restore=True)
        found = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(folder / "model", args=args))
        if checksums(found)[0] != sums[number]:
          raise CheckpointError("the checksums of its model differ")
      yield path, np.asarray(found[0])

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    steps = self._manager.all_steps()
    if step not in steps:
      raise CheckpointError(f"step {step} has no checkpoint under {self.folder}; there are {sorted(steps)}")
    try:
      with _quiet():
        yield
    except Exception as error:
      raise CheckpointError(f"checkpoint {step} cannot be read: {_line(error)}") from error

  def _saved(self, item: Any) -> Any:
    """What tells Orbax to write an item."""
    if self._file_bytes is None:
      return ocp.args.StandardSave(item)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=self._file_bytes // 2), item)
    return ocp.args.PyTreeSave(item, save_args=chunks, ocdbt_target_data_file_size=self._file_bytes)

  def _read(self, step: int, abstract: TrainState) -> Restored:
    items, run = self._items(step, {"model": _model(abstract), "optimizer": _optimizer(abstract)})
    return Restored(TrainState(**items["model"], **items["optimizer"]), run["position"], run["about"], _criterion(run))

  def _items(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named items of a checkpoint, verified by their checksums, and its JSON."""
    args = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    items = self._manager.restore(step, args=ocp.args.Composite(**args, run=ocp.args.JsonRestore()))
    for name in abstract:
      sums, _ = checksums(items[name])
      if sums.tolist() != items["run"]["checksums"][name]:
        raise CheckpointError(f"the checksums of its {name} differ")
    return {name: items[name] for name in abstract}, items["run"]

  def _find_again(self, step: int) -> None:
    """Raises `CheckpointError` unless all arrays of a checkpoint are found where readers will look for them."""
    # The names that are lost are those of files: objects are found by the names that they were given.
    if jax.process_index() != 0 or in_bucket(self.folder):
      return
    for name, expected in self._arrays.items():
      path = str(self.folder / str(step) / name) + "/"
      try:
        base = {"driver": "file", "path": path}
        keys = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()
        found = sum(key.endswith(b"/.zarray") for key in keys)
        why = f"{found} of the {expected} arrays of its {name} are found again"
      except Exception as error:
        found, why = 0, _line(error)
      if found != expected or step not in self._manager.all_steps():
        raise self._failed(CheckpointError(why))

  def _best_of(self, steps: Sequence[int]) -> int | None:
    for step in set(steps) - set(self._criteria):
      # Infinite for a checkpoint that has none or cannot be read, so it is never the best.
      criterion = _criterion(_read_run(self.folder / str(step)))
      self._criteria[step] = math.inf if criterion is None else criterion
    found = [step for step in steps if math.isfinite(self._criteria[step])]
    return min(found, key=lambda step: (self._criteria[step], -step), default=None)

  def _set_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      target = self.folder / f"damaged-{step}"
      while target.exists():
        target = target.with_name(target.name + "-again")
      (self.folder / str(step)).rename(target)
    multihost_utils.sync_global_devices(f"damaged {step}")
    self._manager.reload()

  def _failed(self, error: Exception) -> CheckpointError:
    step, self._writing = self._writing, None
    kept = f"the last good checkpoint is {self.last_good}" if self.last_good else "there is no earlier one"
    return CheckpointError(f"checkpoint {step} could not be written ({_line(error)}); {kept}")


def read_about(folder: AnyPath) -> dict[str, Any]:
  """The newest checkpoint's `about`, read without its arrays; empty if there is none to read."""
  paths = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
  # In a bucket one lies under its own name before it is complete.
  steps = [int(path.name) for path in paths if not in_bucket(path) or ocp.utils.is_checkpoint_finalized(path)]
  found = (_read_run(folder / str(step)).get("about") for step in sorted(steps, reverse=True))
  return next((about for about in found if about), {})


def _read_run(checkpoint: AnyPath) -> dict[str, Any]:
  """A checkpoint's JSON; empty if it cannot be read."""
  try:
    return json.loads(read_bytes(checkpoint / _RUN))
  except (OSError, ValueError):
    return {}


def _criterion(run: dict[str, Any]) -> float | None:
  """The criterion in a checkpoint's JSON, which was always a loss, and named so, before runs had scores."""
  return run.get("criterion", run.get("loss"))


def _model(state: TrainState) -> dict[str, Any]:
  return {"params": state.params, "router_state": state.router_state}


def _optimizer(state: TrainState) -> dict[str, Any]:
  return {"opt_state": state.opt_state, "step": state.step}


@dataclasses.dataclass(frozen=True)
class _Steps:
  """A policy of Orbax that keeps the step chosen by `choose`."""

  choose: Callable[[Sequence[int]], int | None]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    chosen = self.choose([checkpoint.step for checkpoint in checkpoints])
    return [checkpoint.step == chosen for checkpoint in checkpoints]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences the pages of errors from the reads that Orbax abandons after the first error."""
  hooks, logger = (sys.excepthook, sys.unraisablehook), logging.getLogger("asyncio")
  level = logger.level
  sys.excepthook = lambda *unused: None
  sys.unraisablehook = lambda unused: None
  logger.setLevel(logging.CRITICAL + 1)
  try:
    yield
  except Exception:
    gc.collect()  # abandoned tasks report when they are collected
    raise
  finally:
    sys.excepthook, sys.unraisablehook = hooks
    logger.setLevel(level)


def _line(error: BaseException) -> str:
  """The gist of an error of an array store."""
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(code[1]))
  return first_line(error).split(". See ")[0][:200]
