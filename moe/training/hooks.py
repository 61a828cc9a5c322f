"""What happens between the steps of a run: metrics are logged, the model is validated, checkpoints are saved.

A hook is a function that the loop calls after it has started each step. The loop never waits for the device, so a hook
that reads a number of the newest step makes it idle; `Log` reads every step one step late.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from moe.config import UserError
from moe.data import Pipeline
from moe.training.checkpoint import CheckpointError, Checkpoints, NonFiniteError
from moe.training.experiment import ExperimentConfig
from moe.training.feed import whole_position
from moe.training.metrics_file import MetricsWriter, Record, flatten_layers
from moe.training.progress import Clock, Progress
from moe.training.state import TrainState
from moe.training.validation import evaluate_batches
from moe.training.workdir import Workdir

_SCALARS = (
  "loss",
  "bits_per_byte",
  "accuracy",
  "logits_z_loss",
  "auxiliary_loss",
  "gradient_norm",
  "learning_rate",
  "tokens",
  "target_tokens",
)


class TrainingStopped(UserError):
  """Training cannot continue; the message says why, at which step, and what is saved."""

  code = 1


@dataclasses.dataclass(frozen=True)
class Run:
  """What one process works with during a run; all of it is made before the first step.

  Attributes:
    config, workdir, mesh: of the run.
    pipeline, validation: this host's rows of the two splits.
    checkpoints: of the run; about: what each stores beside the state.
    train_step, eval_step: compiled when first called.
    newest: the newest record of each kind.
    writer: writes the records, on process 0 only.
    progress, clock: what a person sees, and the speed since the last record.
  """

  config: ExperimentConfig
  workdir: Workdir
  mesh: Mesh
  pipeline: Pipeline
  validation: Pipeline
  checkpoints: Checkpoints
  about: dict[str, Any]
  train_step: Callable[..., tuple[TrainState, dict[str, Any]]]
  eval_step: Callable[..., dict[str, Any]]
  newest: dict[str, Record]
  writer: MetricsWriter | None
  progress: Progress
  clock: Clock

  def record(self, step: int, kind: str, values: Record) -> None:
    """Keeps a record, which process 0 writes to disk.

    Raises:
      TrainingStopped: it cannot be written.
    """
    self.newest[kind] = {"step": step} | values
    if self.writer is None:
      return
    try:
      self.writer.write(step, kind, values)
    except OSError as error:
      path, saved = self.workdir.metrics, self.what_is_saved()
      raise TrainingStopped(f"{path} could not be written: {error.strerror}; {saved}") from None

  def what_is_saved(self) -> str:
    """A phrase for errors; waits for the checkpoint that is being written."""
    with contextlib.suppress(CheckpointError):
      self.checkpoints.wait()
    good = self.checkpoints.last_good
    return f"the last good checkpoint is {good}" if good else "no checkpoint had been saved yet"

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, error: type[BaseException] | None, *unused: object) -> None:
    self.progress.close()
    if self.writer:
      self.writer.close()
    # After an error the other hosts may be gone, and Orbax would wait for them.
    if error is None or jax.process_count() == 1:
      # The error that ended the run, if any, is the one to report.
      with contextlib.suppress(CheckpointError):
        self.checkpoints.close()


@dataclasses.dataclass(frozen=True)
class StepInfo:
  """A step that the device has been given, and may still be computing.

  Attributes:
    step: its number, counted from 1.
    state: after the step. The next step consumes its arrays: copy what is needed later.
    metrics: device arrays, see `make_train_step`.
    validate, save: whether validation or saving is due after this step.
    stop: whether the run ends here because it was asked to; it then saves, but does not validate.
  """

  step: int
  state: TrainState
  metrics: dict[str, Any]
  validate: bool
  save: bool
  stop: bool


Hook = Callable[[Run, StepInfo], None]


class Log:
  """Reads, checks and logs the metrics of every step, while the device computes the next one.

  Before validation and saving, for which the device has to wait anyway, the newest step is read too.

  Args:
    first: number of the first step, which is compiled and would spoil the speed.
  """

  def __init__(self, first: int):
    self._first = first
    self._unread: tuple[int, dict[str, Any]] | None = None  # not the state, whose arrays the next step consumes

  def __call__(self, run: Run, info: StepInfo) -> None:
    """Raises `TrainingStopped` if the loss or the gradient is not finite, or the record cannot be written."""
    if self._unread is not None:
      self._read(run, *self._unread)
    self._unread = (info.step, info.metrics)
    if info.validate or info.save:
      self._read(run, *self._unread)
      self._unread = None

  def _read(self, run: Run, step: int, metrics: dict[str, Any]) -> None:
    found = jax.device_get({name: metrics[name] for name in _SCALARS})
    values: Record = {name: value.item() for name, value in found.items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
      values |= flatten_layers(jax.device_get(metrics["layers"]))
      run.record(step, "train", values)
      raise TrainingStopped(_why_not_finite(step, values, run.what_is_saved()))
    run.clock.count(values["tokens"])
    log = run.config.train.logs_at(step)
    run.progress.step(step, values["loss"], run.clock.tokens_per_second, log=log)
    if log:
      values |= flatten_layers(jax.device_get(metrics["layers"]))
      values |= {"tokens_per_second": run.clock.tokens_per_second, "input_wait": run.clock.input_wait}
      values |= {"skipped_records": run.pipeline.skipped} if run.pipeline.skipped else {}
      run.record(step, "train", values)
    if log or step == self._first:
      run.clock.restart()


def validate(run: Run, info: StepInfo) -> None:
  """Where it is due, evaluates the model on the beginning of the validation split and logs the result."""
  if not info.validate:
    return
  start = run.validation.position
  empty, batches = run.validation.padding(), run.config.train.eval_batches
  params, router_state = info.state.params, info.state.router_state
  values = evaluate_batches(run.eval_step, params, router_state, run.validation, empty, run.mesh, batches)
  run.validation.restore(start)
  run.record(info.step, "validation", values)
  run.progress.validation(info.step, values["loss"], values["bits_per_byte"])
  run.clock.restart()


def save(run: Run, info: StepInfo) -> None:
  """Where it is due, starts writing a checkpoint, with the loss of the validation just before.

  Raises:
    TrainingStopped: the state is not finite.
    CheckpointError: a checkpoint could not be written.
  """
  if not info.save:
    return
  loss = run.newest["validation"]["loss"] if info.validate else None
  try:
    run.checkpoints.save(info.state, whole_position(run.pipeline), run.about, loss)
  except NonFiniteError as error:
    raise TrainingStopped(f"{error}; {run.what_is_saved()}") from None
  run.clock.restart()


def _why_not_finite(step: int, values: Record, saved: str) -> str:
  """The report of a run that diverged, with the metrics of its routers."""
  lines = [
    f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}: not finite, training stopped",
    *(f"  {name} = {_short(value)}" for name, value in values.items() if "/" in name),
    saved,
  ]
  return "\n".join(lines)


def _short(value: Any) -> str:
  return f"[{', '.join(map(_short, value))}]" if isinstance(value, list) else f"{value:.4g}"
