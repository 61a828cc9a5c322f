"""The training run: data, step, validation, checkpoints, and an end that loses nothing."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from moe.config import as_mapping, differences
from moe.data import DataError, Pipeline
from moe.parallel.mesh import make_mesh, put_batch
from moe.training.checkpoint import CheckpointError, Checkpoints, NonFiniteError, Restored
from moe.training.experiment import ExperimentConfig
from moe.training.feed import byte_lengths, describe, open_pipeline, open_vocabulary, whole_position
from moe.training.metrics import MetricsWriter, Record, flatten_layers, read_metrics
from moe.training.progress import Clock, Progress
from moe.training.setup import Setup
from moe.training.state import TrainState, stored_router_state
from moe.training.stop import stop_requests
from moe.training.validation import evaluate_batches
from moe.training.workdir import Workdir, WorkdirError

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


class TrainingStopped(RuntimeError):
  """The run cannot go on; the message says why, where, and what is saved."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """How a run ended.

  Attributes:
    step: updates made; finished: whether they are all of them (otherwise it was asked to stop).
    train, validation: the run's last records, {} if there is none.
    workdir: the run's paths; checkpoint: folder of the newest checkpoint.
    future_leakage: whether every loss of the run may know the future.
  """

  step: int
  finished: bool
  train: Record
  validation: Record
  workdir: Workdir
  checkpoint: pathlib.Path | None
  future_leakage: bool


def train(config: ExperimentConfig, workdir: str | pathlib.Path) -> Summary:
  """Trains from the newest checkpoint in `workdir`, or from nothing, to the last step or until asked to stop.

  SIGTERM or SIGINT saves and returns. The losses are those of a run that was never interrupted, bit for bit.

  Raises:
    ConfigError, DataError: before anything is written.
    WorkdirError: the folder holds another run, or cannot be written to.
    CheckpointError: a checkpoint could not be written, or none of those that are there can be read.
    TrainingStopped: the loss or the gradient is no longer finite.
  """
  place = Workdir(workdir)
  place.check(config)
  mesh = make_mesh(config.mesh)
  config.check_mesh(mesh)
  vocabulary = open_vocabulary(config)
  with (
    open_pipeline(config, "train", mesh, training=True) as pipeline,
    open_pipeline(config, "validation", mesh, training=False) as validation,
  ):
    _require_examples(validation)
    if not place.config.exists():
      stored_router_state(config.model, vocabulary.fingerprint)  # whether its files are there, before anything starts
    if jax.process_index() == 0:
      place.claim(config)
    use_compilation_cache(config.train.compilation_cache)
    run = _Run(config, place, mesh, vocabulary, pipeline, validation)
    try:
      summary = run.to_the_end()
    except BaseException:
      # The other hosts may be gone, and what is being written would wait for them. The mains end this process.
      run.close(wait=jax.process_count() == 1)
      raise
    run.close()
    return summary


def _require_examples(validation: Pipeline) -> None:
  """Raises `DataError` now instead of at the first validation, and leaves the pipeline where it was."""
  start = validation.position
  if next(validation, None) is None:
    raise DataError("split 'validation'", "holds no example; choose another validation split or fraction")
  validation.restore(start)


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in `folder` (empty: the user's cache), unless JAX has been given a place already."""
  if jax.config.jax_compilation_cache_dir is None:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder or os.path.join(home, "moe", "xla")))


class _Run:
  """One process's part of a run. `step` counts updates; `_pending` is the newest one's metrics, still on the device."""

  def __init__(self, config, place, mesh, vocabulary, pipeline, validation):
    self.config, self.place, self.mesh = config, place, mesh
    self.vocabulary, self.pipeline, self.validation = vocabulary, pipeline, validation
    self.start_of_validation = validation.position
    self.leaks = config.model.leaks_future
    self.about = {"config": as_mapping(config), "vocabulary": describe(vocabulary)}
    self.checkpoints, self.validated = Checkpoints(place.checkpoints, config.train.keep), False
    self.train_step, self.eval_step = self._compile_steps()
    self.step = int(self.state.step)
    common = {"future_leakage": True} if self.leaks else {}
    primary = jax.process_index() == 0
    self.writer = MetricsWriter(place.metrics, place.tensorboard, common) if primary else None
    self.progress = Progress(self.step, config.train.steps, leaks=self.leaks)
    self.progress.line(_introduction(self.state, mesh))
    self.last: dict[str, Record] = {"train": {}, "validation": {}}
    self._pending, self._is_first = None, True
    self._clock = Clock()

  def _compile_steps(self):
    """Makes or restores the state, and the functions that move and judge it (compiled when first called)."""
    setup = Setup(self.config, self.mesh)
    self.state = self._start(setup)
    lengths = byte_lengths(self.vocabulary, self.config.model.vocab_size)
    return setup.train_step(lengths), setup.eval_step(lengths)

  def _start(self, setup: Setup) -> TrainState:
    self._check_model()
    restored = self.checkpoints.restore(setup.abstract, lambda line: print(line, flush=True))
    if restored is None:
      return setup.first_state(stored_router_state(self.config.model, self.vocabulary.fingerprint))
    self._check_vocabulary(restored)
    self.validated = restored.loss is not None
    self.pipeline.restore(restored.position)
    print(f"going on from {self.checkpoints.last_good}", flush=True)
    return restored.state

  def _check_model(self) -> None:
    found = self.checkpoints.about().get("config", {}).get("model")
    other = differences(found, self.about["config"]["model"], "config.model") if found else {}
    if other:
      listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in other.items())
      raise WorkdirError(f"{self.checkpoints.folder} holds checkpoints of another model: {listed}")

  def _check_vocabulary(self, restored: Restored) -> None:
    if restored.about["vocabulary"] != self.about["vocabulary"]:
      name = self.vocabulary.name
      raise WorkdirError(f"vocabulary {name!r} is not the one that the run in {self.place.root} was trained with")

  def to_the_end(self) -> Summary:
    batches, settings = iter(self.pipeline), self.config.train
    if self._is_validation_due() and not self.validated:
      self._validate()  # a signal had come between the step and its validation
    with stop_requests() as asked_to_stop:
      while self.step < settings.steps:
        self._advance(batches)
        last = self.step == settings.steps
        stop = asked_to_stop(self.step)
        validate = self._is_validation_due()
        if validate or stop or self.step % settings.checkpoint_every == 0:
          self._report()
          loss = self._validate() if validate and not stop else None
          if last or stop or self.step % settings.checkpoint_every == 0:
            self._save(loss)
          self._clock.restart()
        if stop and not last:
          break
    self._finite(self.checkpoints.wait)
    finished = self.step == settings.steps
    if not finished:
      self.progress.line(f"stopped at step {self.step} and saved; the same command goes on from there")
    records = (self._last_record("train"), self._last_record("validation"))
    return Summary(self.step, finished, *records, self.place, self.checkpoints.last_good, self.leaks)

  def _last_record(self, kind: str) -> Record:
    """The newest of this process, or of those before, which may have made the last step already."""
    before = read_metrics(self.place.metrics) if self.writer else []
    return self.last[kind] or next((record for record in reversed(before) if record["kind"] == kind), {})

  def close(self, *, wait: bool = True) -> None:
    self.progress.close()
    if self.writer:
      self.writer.close()
    if wait:
      # The error that ended the run, if any, is the one to be seen.
      with contextlib.suppress(CheckpointError):
        self.checkpoints.close()

  def _advance(self, batches: Iterator[dict[str, Any]]) -> None:
    """Starts the next step on the device, then reads the metrics of the one before: the device never waits for us."""
    self.checkpoints.poll()
    before = self._pending and self._pending["loss"]
    with self._clock.waiting(lambda: before is None or before.is_ready()):
      batch = next(batches)
    self.state, metrics = self.train_step(self.state, put_batch(self.mesh, batch))
    self._report()
    self.step, self._pending = self.step + 1, metrics

  def _report(self) -> None:
    """Reads, checks and writes the newest metrics, once."""
    if self._pending is None:
      return
    metrics, self._pending = self._pending, None
    first, self._is_first = self._is_first, False
    values = {name: value.item() for name, value in jax.device_get({n: metrics[n] for n in _SCALARS}).items()}
    if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
      values |= flatten_layers(jax.device_get(metrics["layers"]))
      self._write("train", values)
      raise TrainingStopped(self._why_not_finite(values))
    self._clock.count(values["tokens"])
    log = self.step % self.config.train.log_every == 0 or self.step == self.config.train.steps
    self.progress.step(self.step, values["loss"], self._clock.tokens_per_second, log=log)
    if first and not log:
      self._clock.restart()  # this step was compiled too
    if log:
      values |= flatten_layers(jax.device_get(metrics["layers"]))
      values |= {"tokens_per_second": self._clock.tokens_per_second, "input_wait": self._clock.input_wait}
      self._write("train", values)
      self._clock.restart()

  def _is_validation_due(self) -> bool:
    settings = self.config.train
    return self.step > 0 and (self.step % settings.eval_every == 0 or self.step == settings.steps)

  def _validate(self) -> float:
    self.validation.restore(self.start_of_validation)
    values = evaluate_batches(
      self.eval_step,
      self.state.params,
      self.state.router_state,
      self.validation,
      self.validation.padding(),
      self.mesh,
      self.config.train.eval_batches,
    )
    self.validation.close()
    self._write("validation", values)
    self.progress.validation(self.step, values["loss"], values["bits_per_byte"])
    return values["loss"]

  def _save(self, loss: float | None) -> None:
    self._finite(lambda: self.checkpoints.save(self.state, whole_position(self.pipeline), self.about, loss))

  def _finite(self, action: Callable[[], Any]) -> None:
    try:
      action()
    except NonFiniteError as error:
      raise TrainingStopped(f"{error}; {self._saved()}") from None

  def _write(self, kind: str, values: Record) -> None:
    self.last[kind] = {"step": self.step} | values
    if self.writer:
      try:
        self.writer.write(self.step, kind, values)
      except OSError as error:
        raise TrainingStopped(f"{self.place.metrics} could not be written: {error.strerror}; {self._saved()}") from None

  def _why_not_finite(self, values: Record) -> str:
    lines = [
      f"step {self.step}: loss {values['loss']}, gradient norm {values['gradient_norm']}: not finite, training stopped",
      *(f"  {name} = {_short(value)}" for name, value in values.items() if "/" in name),
      self._saved(),
    ]
    return "\n".join(lines)

  def _saved(self) -> str:
    with contextlib.suppress(CheckpointError):
      self.checkpoints.wait()
    good = self.checkpoints.last_good
    return f"the last good checkpoint is {good}" if good else "no checkpoint had been saved yet"


def _introduction(state: TrainState, mesh: Mesh) -> str:
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices, {axes}"
  return f"{parameters:,} parameters on {devices} ({mesh.devices.flat[0].device_kind}); the first step is compiled"


def _short(value: Any) -> str:
  return f"[{', '.join(map(_short, value))}]" if isinstance(value, list) else f"{value:.4g}"
