"""The training run, from top to bottom: check and open everything, make or restore the state, the loop, the end."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import jax
from jax.sharding import Mesh

from moe.config import as_mapping, differences
from moe.data import DataError, Pipeline
from moe.parallel.mesh import make_mesh, put_batch
from moe.parallel.stop import stop_requests
from moe.training.checkpoint import Checkpoints
from moe.training.experiment import ExperimentConfig
from moe.training.feed import byte_lengths, describe, open_pipeline, open_vocabulary
from moe.training.hooks import Hook, Log, Means, Run, StepInfo, save, validate
from moe.training.metrics_file import MetricsWriter, Record, read_metrics
from moe.training.progress import Clock, Progress
from moe.training.setup import Setup
from moe.training.state import TrainState, stored_router_state
from moe.training.workdir import Workdir, WorkdirError


@dataclasses.dataclass(frozen=True)
class Summary:
  """How a run ended.

  Attributes:
    step: updates made.
    finished: whether they are all of them; otherwise the run was asked to stop.
    train, validation: the newest records of the run, {} if there is none.
    workdir: paths of the run.
    checkpoint: folder of the newest checkpoint.
    future_leakage: whether its validation may know the future; such a model cannot decode.
  """

  step: int
  finished: bool
  train: Record
  validation: Record
  workdir: Workdir
  checkpoint: pathlib.Path | None
  future_leakage: bool


def train(config: ExperimentConfig, folder: str | pathlib.Path, hooks: Sequence[Hook] = ()) -> Summary:
  """Trains from the newest checkpoint in the workdir, or from step 0, to the last step or until asked to stop.

  SIGTERM or SIGINT saves and returns. A resumed run has the losses of one that was never interrupted, bit for bit. Its
  records are means over the steps since the record before.

  Args:
    config: of the run.
    folder: its workdir; created if it does not exist.
    hooks: called after each step, in this order, after those that log, validate and save.

  Raises:
    ConfigError, DataError: before anything is written.
    WorkdirError: the folder holds another run, or cannot be written to.
    CheckpointError: a checkpoint could not be written, or there are checkpoints and none can be read.
    TrainingStopped: the loss or the gradient is no longer finite, or metrics cannot be written.
  """
  # ----------------------------------------------------------------------------------------------------------------
  # Check and open everything. Nothing is written before `claim`.
  # ----------------------------------------------------------------------------------------------------------------
  settings, workdir = config.train, Workdir(folder)
  workdir.check(config)
  mesh = make_mesh(config.mesh)
  config.check_mesh(mesh)
  vocabulary = open_vocabulary(config)
  with contextlib.ExitStack() as stack:
    pipeline = stack.enter_context(open_pipeline(config, "train", mesh, training=True))
    validation = stack.enter_context(open_pipeline(config, "validation", mesh, training=False))
    _check_examples(validation)
    if not workdir.config.exists():
      stored_router_state(config.model, vocabulary.fingerprint)  # fails here if one of its files is missing
    if jax.process_index() == 0:
      workdir.claim(config)
    use_compilation_cache(settings.compilation_cache)

    # --------------------------------------------------------------------------------------------------------------
    # Make or restore the state.
    # --------------------------------------------------------------------------------------------------------------
    about = {"config": as_mapping(config), "vocabulary": describe(vocabulary)}
    checkpoints = Checkpoints(workdir.checkpoints, settings.keep)
    _check_model(checkpoints, about)
    setup = Setup(config, mesh)
    restored = checkpoints.restore(setup.abstract, lambda line: print(line, flush=True))
    if restored is None:
      state = setup.first_state(stored_router_state(config.model, vocabulary.fingerprint))
    else:
      _check_vocabulary(restored.about, about, workdir)
      state = restored.state
      pipeline.restore(restored.position)
      print(f"resuming from {checkpoints.last_good}", flush=True)
    first = step = int(state.step)

    lengths = byte_lengths(vocabulary, config.model.vocab_size)
    knows = {"train": config.model.trains_on_future, "validation": config.model.evaluates_on_future}
    leaks, is_primary = [kind for kind in knows if knows[kind]], jax.process_index() == 0
    run = Run(
      config=config,
      workdir=workdir,
      mesh=mesh,
      pipeline=pipeline,
      validation=validation,
      checkpoints=checkpoints,
      about=about,
      train_step=setup.train_step(lengths),
      eval_step=setup.eval_step(lengths),
      means=Means(restored.about["since_record"] if restored else None),
      newest={"train": {}, "validation": {}} | (_newest_records(workdir) if is_primary else {}),
      writer=MetricsWriter(workdir.metrics, workdir.tensorboard, leaks) if is_primary else None,
      progress=Progress(step, settings.steps, leaks=leaks),
      clock=Clock(),
    )
    stack.enter_context(run)
    run.progress.line(_introduction(state, mesh))

    # --------------------------------------------------------------------------------------------------------------
    # The loop. The host starts each step before it reads the metrics of the one before: the device never waits.
    # --------------------------------------------------------------------------------------------------------------
    if restored is not None and restored.loss is None and settings.validates_at(step):
      # The signal that stopped the run also prevented the validation of its last step.
      validate(run, StepInfo(step, state, metrics={}, validate=True, save=False, stop=False))
    all_hooks: list[Hook] = [Log(first + 1), validate, save, *hooks]
    loss, stop = None, False
    with stop_requests() as asked_to_stop:
      while step < settings.steps and not stop:
        checkpoints.poll()
        with run.clock.waiting(functools.partial(_is_idle, loss)):
          batch = next(pipeline)
        state, metrics = run.train_step(state, put_batch(mesh, batch), setup.inputs(step))
        jax.block_until_ready(loss)  # of the step before: a request to stop takes effect as early as possible
        step, loss = step + 1, metrics["loss"]
        stop = asked_to_stop(step)
        validates, saves = settings.validates_at(step) and not stop, settings.saves_at(step) or stop
        info = StepInfo(step, state, metrics, validates, saves, stop)
        for hook in all_hooks:
          hook(run, info)

    # --------------------------------------------------------------------------------------------------------------
    # The end.
    # --------------------------------------------------------------------------------------------------------------
    checkpoints.wait()
    finished = step == settings.steps
    if not finished:
      run.progress.line(f"stopped at step {step} and saved; run the same command to resume")
    newest, false_loss = run.newest, knows["validation"]
    return Summary(step, finished, newest["train"], newest["validation"], workdir, checkpoints.last_good, false_loss)


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs in `folder` (empty: the user's cache), unless JAX has a cache already."""
  if cast(Any, jax.config).jax_compilation_cache_dir is None:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder or os.path.join(home, "moe", "xla")))


def _check_examples(validation: Pipeline) -> None:
  """Raises `DataError` now instead of at the first validation; leaves the pipeline at its position."""
  start = validation.position
  if next(validation, None) is None:
    raise DataError("split 'validation'", "holds no example: expected some; data.source says what is held out")
  validation.restore(start)


def _check_model(checkpoints: Checkpoints, about: dict[str, Any]) -> None:
  """Raises `WorkdirError` if there are checkpoints of another model."""
  found = checkpoints.about().get("config", {}).get("model")
  other = differences(found, about["config"]["model"], "config.model") if found else {}
  if other:
    listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in other.items())
    raise WorkdirError(f"{checkpoints.folder} holds checkpoints of another model: {listed}")


def _check_vocabulary(restored: dict[str, Any], about: dict[str, Any], workdir: Workdir) -> None:
  """Raises `WorkdirError` if the run was trained with another vocabulary."""
  if restored["vocabulary"] != about["vocabulary"]:
    name = about["vocabulary"]["name"]
    raise WorkdirError(f"vocabulary {name!r} is not the one that the run in {workdir.root} was trained with")


def _is_idle(newest_loss: Any) -> bool:
  """Whether the device has computed all steps that it was given."""
  return newest_loss is None or newest_loss.is_ready()


def _newest_records(workdir: Workdir) -> dict[str, Record]:
  """The newest record of each kind on disk."""
  return {record["kind"]: record for record in read_metrics(workdir.metrics)} if workdir.metrics.exists() else {}


def _introduction(state: TrainState, mesh: Mesh) -> str:
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices, {axes}"
  return f"{parameters:,} parameters on {devices} ({mesh.devices.flat[0].device_kind}); the first step is compiled"
