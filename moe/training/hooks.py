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
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.config import UserError
from moe.data import Pipeline
from moe.training.checkpoint import CheckpointError, Checkpoints, NonFiniteError
from moe.training.experiment import ExperimentConfig
from moe.training.feed import whole_position
from moe.training.metrics_file import MetricsWriter, Record, flatten_layers
from moe.training.progress import Clock, Progress
from moe.training.state import TrainState
from moe.training.step import times_by_stack
from moe.training.validation import evaluate_batches, layer_means
from moe.training.workdir import Workdir

# What a step's metric is a mean over, and so what weights it in the mean over steps.
_MEAN_OVER = {
  "loss": "target_tokens",
  "bits_per_byte": "bytes",
  "accuracy": "target_tokens",
  "logits_z_loss": "target_tokens",
  "auxiliary_loss": "steps",
  "gradient_norm": "steps",
}
_SUMS = ("tokens", "target_tokens", "bytes")
_OF_TEXT = ("bytes", "bits_per_byte")
_SCALARS = (*_MEAN_OVER, "learning_rate", *_SUMS)


class TrainingStopped(UserError):
  """Training cannot continue; the message says why, at which step, and what is saved."""

  code = 1


class DivergedError(TrainingStopped):
  """The loss, the gradient or the state is no longer finite."""


class Means:
  """Means over the steps since the last record. A checkpoint holds them: a resumed run then has the same records.

  Numbers are summed on the host. Routers' metrics are summed on the device, right after their step, so that reading
  them waits for no later one.

  Args:
    held: from `as_json`.
  """

  def __init__(self, held: dict[str, Any] | None = None):
    self._sums: dict[str, float] = held["sums"] if held else {}
    self._layers: Any = held["layers"] if held else None
    if self._layers:
      self._layers = jax.tree.map(np.float32, self._layers, is_leaf=lambda leaf: isinstance(leaf, list))

  def follow(self, metrics: dict[str, Any], *, last: bool) -> Any:
    """The sums of the routers' metrics after a step, on the device; they start over after the `last`."""
    total = _add_layers(self._layers, metrics["layers"], metrics["layer_tokens"])
    self._layers = None if last else total
    return total

  def add(self, values: Record) -> None:
    """Adds the numbers of a step."""
    values = values | {"steps": 1}
    for name in ("steps", *_SUMS):
      self._sums[name] = self._sums.get(name, 0) + values[name]
    for name, weight in _MEAN_OVER.items():
      self._sums[name] = self._sums.get(name, 0.0) + values[name] * values[weight]
    self._sums["learning_rate"] = values["learning_rate"]

  def take(self) -> Record:
    """The means, sums of tokens and bytes, the last learning rate, and the number of steps; starts over.

    Those of text are left out where there is none.
    """
    sums, self._sums = self._sums, {}
    means = sums | {name: sums[name] / (sums[weight] or 1) for name, weight in _MEAN_OVER.items()}
    return means if sums["bytes"] else {name: means[name] for name in means if name not in _OF_TEXT}

  def as_json(self) -> dict[str, Any]:
    """All of it; waits for the device."""
    return {"sums": self._sums, "layers": jax.tree.map(lambda leaf: leaf.tolist(), jax.device_get(self._layers))}


@jax.jit
def _add_layers(total: Any, layers: dict[str, Any], tokens: dict[str, jax.Array]) -> dict[str, Any]:
  """Routers' metrics times the tokens of their stack, and these tokens, added to those before, if there are any."""
  weights = {stack: count.astype(jnp.float32) for stack, count in tokens.items()}
  new = {"layers": times_by_stack(layers, weights), "tokens": weights}
  return new if total is None else jax.tree.map(jnp.add, total, new)


@dataclasses.dataclass(frozen=True)
class Run:
  """What one process works with during a run; all of it is made before the first step.

  Attributes:
    config, workdir, mesh: of the run.
    pipeline, validation: this host's rows of the two splits.
    checkpoints: of the run; about: what each stores beside the state.
    train_step, eval_step: compiled when first called.
    newest: the newest record of each kind.
    means: of the steps since the last record.
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
  means: Means
  writer: MetricsWriter | None
  progress: Progress
  clock: Clock

  def record(self, step: int, kind: str, values: Record) -> None:
    """Keeps a record, which process 0 writes to disk.

    Raises:
      TrainingStopped: it cannot be written.
    """
    self.newest[kind] = {"step": step} | values
    self._with_writer(lambda writer: writer.write(step, kind, values))

  def sync_records(self) -> None:
    """Records until now outlive a kill, as the checkpoint does that is to follow them; raises as `record`."""
    self._with_writer(lambda writer: writer.sync())

  def _with_writer(self, action: Callable[[MetricsWriter], None]) -> None:
    if self.writer is None:
      return
    try:
      action(self.writer)
    except OSError as error:
      path, saved = self.workdir.metrics, self.what_is_saved()
      raise TrainingStopped(f"{path} could not be written: {error.strerror}; {saved}") from None

  def criterion(self) -> float:
    """What the best checkpoint has the lowest of: minus the newest score or, in a run without, the newest loss."""
    score = self.config.score
    return self.newest["validation"]["loss"] if score is None else -self.newest[score.chosen_by]["mean"]

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
  """Reads and checks the metrics of every step, while the device computes the next one, and logs their means.

  Before validation and saving, for which the device has to wait anyway, the newest step is read too.

  Args:
    first: number of the first step: it is shown at once, and left out of the speed, as it includes compilation.
  """

  def __init__(self, first: int):
    self._first = first
    # Step, metrics, sums of the routers' metrics; not the state, whose arrays the next step consumes.
    self._unread: tuple[int, dict[str, Any], Any] | None = None

  def __call__(self, run: Run, info: StepInfo) -> None:
    """Raises `DivergedError`, or `TrainingStopped` if the record cannot be written."""
    self.finish(run)
    sums = run.means.follow(info.metrics, last=run.config.train.logs_at(info.step))
    self._unread = (info.step, info.metrics, sums)
    if info.validate or info.save:
      self.finish(run)

  def finish(self, run: Run) -> None:
    """Reads the newest step now; raises as a call does."""
    if self._unread is not None:
      self._read(run, *self._unread)
      self._unread = None

  def _read(self, run: Run, step: int, metrics: dict[str, Any], sums: Any) -> None:
    found = jax.device_get({name: metrics[name] for name in _SCALARS})
    values: Record = {name: value.item() for name, value in found.items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
      values |= flatten_layers(jax.device_get(metrics["layers"]))
      run.record(step, "train", values)
      raise DivergedError(_why_not_finite(step, values, run.what_is_saved()))
    run.clock.count(values["tokens"])
    run.means.add(values)
    log = run.config.train.logs_at(step)
    if log:
      values = run.means.take()
    run.progress.step(step, values["loss"], run.clock.tokens_per_second, log=log or step == self._first)
    if log:
      sums = jax.device_get(sums)
      values |= {f"{stack}/tokens": int(sums["tokens"][stack]) for stack, found in sums["layers"].items() if found}
      values |= flatten_layers(layer_means(**sums))
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
  run.progress.validation(info.step, values)
  run.clock.restart()


def save(run: Run, info: StepInfo) -> None:
  """Where it is due, starts writing a checkpoint, with the criterion of the validation just before, if there was one.

  Raises:
    DivergedError: the state is not finite.
    CheckpointError: a checkpoint could not be written.
    TrainingStopped: the records could not be written.
  """
  if not info.save:
    return
  criterion = run.criterion() if info.validate else None
  run.sync_records()
  try:
    about = run.about | {"since_record": run.means.as_json()}
    run.checkpoints.save(info.state, whole_position(run.pipeline), about, criterion)
  except NonFiniteError as error:
    raise DivergedError(f"{error}; {run.what_is_saved()}") from None
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
