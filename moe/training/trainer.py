"""The training run, from top to bottom: check and open everything, make or restore the state, the loop, the end."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from moe.config import ConfigError, as_mapping, build, differences, first_line
from moe.data import DataError, Pipeline, Vocabulary
from moe.files import AnyPath
from moe.models import ModelConfig
from moe.parallel.mesh import make_mesh, put_batch
from moe.parallel.stop import stop_requests
from moe.training.checkpoint import Checkpoints, Restored, read_about
from moe.training.experiment import HELD_OUT, VALIDATION, ExperimentConfig
from moe.training.feed import byte_lengths, describe, fingerprint, open_pipeline, open_vocabulary
from moe.training.hooks import Hook, Log, Means, Run, StepInfo, TrainingStopped, save, validate
from moe.training.init import InitSource, settle
from moe.training.metrics_file import MetricsWriter, Record, read_metrics
from moe.training.optimization.parts import by_path
from moe.training.progress import Clock, Progress
from moe.training.setup import Setup, check_memory
from moe.training.state import TrainState, stored_router_state
from moe.training.workdir import Workdir, WorkdirError, router_paths, with_absolute_paths


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
  checkpoint: AnyPath | None
  future_leakage: bool


def train(
  config: ExperimentConfig, folder: str | pathlib.Path, hooks: Sequence[Hook] = (), score: Hook | None = None
) -> Summary:
  """Trains from the newest checkpoint in the workdir, or from step 0, to the last step or until asked to stop.

  Step 0 has random parameters, or those of the checkpoint that `config.init` names.

  SIGTERM or SIGINT saves and returns. A resumed run has the losses of one that was never interrupted, bit for bit. Its
  records are means over the steps since the previous record.

  Args:
    config: of the run.
    folder: its workdir, which may lie in a bucket; created if it does not exist.
    hooks: called after each step, in this order, after those that log, validate and save.
    score: the hook that scores tasks, called before the one that saves; required if the config has a section `score`.
      Where validation is due it records `score/validation` and, if the config holds out a part, `score/held_out`, each
      with the `mean` over tasks.

  Raises:
    ConfigError, DataError: before anything is written.
    WorkdirError: the folder holds another run, is in use, has lost its checkpoints, or cannot be written to.
    CheckpointError: a checkpoint could not be written, or there are checkpoints and none can be read.
    DivergedError: the loss or the gradient is no longer finite.
    TrainingStopped: metrics cannot be written; an example could not be read; or a step does not fit the memory.

  Whatever goes wrong in reading an example, validating or scoring, a single host saves first.
  """
  # ----------------------------------------------------------------------------------------------------------------
  # Check and open everything. The folder is claimed when the first checkpoint is complete.
  # ----------------------------------------------------------------------------------------------------------------
  if (config.score is None) != (score is None):
    raise ValueError("score: expected a hook if, and only if, the config has a section `score`")
  settings, workdir, is_primary = config.train, Workdir(folder), jax.process_index() == 0
  if config.init is not None:
    config = dataclasses.replace(config, init=settle(config.init, workdir))
  workdir.check(config)
  with contextlib.ExitStack() as stack:
    if is_primary:
      stack.enter_context(workdir.held())
      workdir.check(config)  # another run may have claimed it in the meantime
    config = workdir.with_vocabulary(config)
    mesh = make_mesh(config.mesh)
    config.check_mesh(mesh)
    check_memory(config, mesh)
    vocabulary = open_vocabulary(config)
    setup = Setup(config, mesh)
    check_memory(config, mesh, setup.abstract)
    before = read_about(workdir.checkpoints)
    held = config.init is not None and config.init.kl_loss > 0  # to what the source predicts, also after a resume
    begins = config.init is not None and (held or workdir.stored() is None)
    source = InitSource(config.init) if begins else None
    router_files = _router_files(config, before if source is None else source.about, vocabulary)
    if source is not None:
      source.check(setup.abstract, vocabulary, router_files)
    pipeline = stack.enter_context(open_pipeline(config, "train", mesh, training=True))
    validation = stack.enter_context(open_pipeline(config, "validation", mesh, training=False))
    _check_examples(validation)
    use_compilation_cache(settings.compilation_cache)

    about: dict[str, Any] = {
      "config": with_absolute_paths(config),
      "vocabulary": describe(vocabulary),
      "data": {"train": pipeline.position["source"], "validation": validation.position["source"]},
      "router_files": router_files,
    }
    _check_content(before, about, workdir)

    # --------------------------------------------------------------------------------------------------------------
    # Make or restore the state.
    # --------------------------------------------------------------------------------------------------------------
    def claim() -> None:
      if is_primary:
        workdir.claim(config, vocabulary.model)

    begun = None if source is None else source.restore(setup.abstract)
    checkpoints = Checkpoints(workdir.checkpoints, settings.keep, on_first=claim)
    if checkpoints.latest() is None and workdir.config.exists():
      raise WorkdirError(_no_checkpoints_left(workdir))
    restored = checkpoints.restore(setup.abstract, lambda line: print(line, flush=True))
    if restored is None:
      if is_primary:
        workdir.set_aside()
      predicts = jax.tree.map(jnp.copy, begun) if held else None  # the first step consumes what it begins with
      stored = {} if begun else stored_router_state(config.model, vocabulary.fingerprint)
      state = setup.state_of(*begun) if begun else setup.first_state(stored)
    else:
      if restored.position is not None:  # None in a run made of another's weights: its data are all new
        pipeline.restore(_position(restored, about["data"], workdir))
      predicts = begun if held else None
      claim()  # a kill may have come before it, and files may have moved
      state = restored.state
      print(f"resuming from {checkpoints.last_good}", flush=True)
    first = step = int(state.step)
    metrics: dict[str, Any] = {}

    lengths = byte_lengths(vocabulary, config.model.vocab_size)
    knows = {"train": config.model.trains_on_future, "validation": config.model.evaluates_on_future}
    leaks = [kind for kind in knows if knows[kind]]
    leaks += [VALIDATION, HELD_OUT] if knows["validation"] else []
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
      writer=_open_writer(workdir, leaks) if is_primary else None,
      progress=Progress(step, settings.steps, leaks=leaks),
      clock=Clock(),
    )
    stack.enter_context(run)
    run.progress.line(_introduction(setup, state))

    # --------------------------------------------------------------------------------------------------------------
    # The loop. The host starts each step before it reads the metrics of the one before: the device never waits.
    # --------------------------------------------------------------------------------------------------------------
    log, loss, stop = Log(first + 1), None, False
    evaluate = functools.partial(_evaluate, [validate, *([] if score is None else [score])])
    all_hooks: list[Hook] = [log, evaluate, save, *hooks]
    if restored is not None and restored.criterion is None and settings.validates_at(step):
      # The signal that stopped the run also prevented the validation of its last step.
      evaluate(run, StepInfo(step, state, metrics={}, validate=True, save=False, stop=False))
      checkpoints.set_criterion(step, run.criterion())
    with stop_requests() as asked_to_stop, _memory_errors(run):
      while step < settings.steps and not stop:
        checkpoints.poll()
        try:
          with run.clock.waiting(functools.partial(_is_idle, loss)):
            batch = next(pipeline)
        except Exception as error:  # also a user's own preprocessing
          if step > first:
            log.finish(run)
            _save_alone(run, StepInfo(step, state, metrics, validate=False, save=True, stop=True))
          raise _stopped_by_data(run, error, step) from error
        state, metrics = run.train_step(state, put_batch(mesh, batch), setup.inputs(step, predicts))
        jax.block_until_ready(loss)  # of the step before: a request to stop takes effect as early as possible
        step, loss = step + 1, metrics["loss"]
        stop = asked_to_stop(step)
        validates, saves = settings.validates_at(step) and not stop, config.saves_at(step) or stop
        info = StepInfo(step, state, metrics, validates, saves, stop)
        for hook in all_hooks:
          hook(run, info)

    # --------------------------------------------------------------------------------------------------------------
    # The end.
    # --------------------------------------------------------------------------------------------------------------
    checkpoints.wait()
    finished = step >= settings.steps
    if step > settings.steps:
      run.progress.line(f"finished at step {step}, which is beyond config.train.steps = {settings.steps}")
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
  found = np.array(next(validation, None) is not None)
  if jax.process_count() > 1:  # a host may have none where they are few
    found = multihost_utils.process_allgather(found)
  if not np.any(found):
    raise DataError("split 'validation'", "holds no example: expected some; data.source says what is held out")
  validation.restore(start)


@contextlib.contextmanager
def _memory_errors(run: Run) -> Iterator[None]:
  """Raises `TrainingStopped` in place of a device's error that its memory is full: `check_memory` knows the least."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    data, train = run.config.data, run.config.train
    less = (
      f"config.data.batch_size = {data.batch_size} smaller, config.train.accumulation = {train.accumulation} larger"
    )
    raise TrainingStopped(
      f"{first_line(error)}; make {less}, or set config.model.remat; {run.what_is_saved()}"
    ) from error


def _evaluate(hooks: Sequence[Hook], run: Run, info: StepInfo) -> None:
  """Calls hooks that evaluate; where one fails, saves what was learnt, so that a second try begins with it.

  Raises:
    TrainingStopped: data could not be read, or records not be written.
    Exception: any other of theirs.
  """
  try:
    for hook in hooks:
      hook(run, info)
  except TrainingStopped:
    raise
  except Exception as error:
    _save_alone(run, dataclasses.replace(info, validate=False, save=True))
    if isinstance(error, DataError):
      raise _stopped_by_data(run, error, info.step) from error
    run.progress.line(f"evaluation at step {info.step} failed; {run.what_is_saved()}")
    raise


def _save_alone(run: Run, info: StepInfo) -> None:
  """Saves before the run ends with an error; hosts that share a run cannot, as the others may be elsewhere."""
  if jax.process_count() == 1:
    save(run, info)


def _stopped_by_data(run: Run, error: Exception, step: int) -> TrainingStopped:
  """The error for data that could not be read after a step, which is noted, since they may be mended."""
  if run.writer is not None:
    run.workdir.note_data_error(step, _line(error))
  return TrainingStopped(f"{_line(error)}; stopped at step {step}, {run.what_is_saved()}")


def _no_checkpoints_left(workdir: Workdir) -> str:
  return (
    f"{workdir.root} holds a run whose checkpoints are gone: put {workdir.checkpoints} back, or choose another"
    f" --workdir; to train again from step 0, remove {workdir.config}"
  )


def _router_files(config: ExperimentConfig, before: Mapping[str, Any], vocabulary: Vocabulary) -> str | None:
  """Fingerprint of what routers read from files; those of a checkpoint's run are not read again, as they may be gone.

  `before` is the `about` of a checkpoint, the run's own or the one that it begins from.

  Raises:
    ConfigError: a file is missing, or was made for another vocabulary or number of experts.
  """
  if before and router_paths(before["config"]) == router_paths(with_absolute_paths(config)):
    return before.get("router_files")
  return fingerprint(stored_router_state(config.model, vocabulary.fingerprint))


def _check_content(before: Mapping[str, Any], about: Mapping[str, Any], workdir: Workdir) -> None:
  """Raises `WorkdirError` if there are checkpoints of another model, or of other files than those given now."""
  if not before:
    return
  model, other = before["config"]["model"], about["config"]["model"]
  with contextlib.suppress(ConfigError):  # read and written again, since an older version may have stored fewer fields
    model = as_mapping(build(ModelConfig, model))
  moved = {f"config.{name}" for tree in (before, about) for name in router_paths(tree["config"])}
  found = {f: values for f, values in differences(model, other, "config.model").items() if f not in moved}
  if found:
    listed = "; ".join(f"{field} was {old!r}, is {new!r}" for field, (old, new) in found.items())
    raise WorkdirError(f"{workdir.checkpoints} holds checkpoints of another model: {listed}")
  trained = f"the one that the run in {workdir.root} was trained with"
  old, new = before["vocabulary"], about["vocabulary"]
  if (old["size"], old["fingerprint"]) != (new["size"], new["fingerprint"]):
    raise WorkdirError(f"vocabulary {new['name']!r} is not {trained}")
  if before.get("router_files") != about["router_files"]:
    files = ", ".join(f"config.{name} = {path!r}" for name, path in router_paths(about["config"]).items())
    raise WorkdirError(f"{files or 'no file for the router'}: its content is not {trained}")


def _position(restored: Restored, now: Mapping[str, str], workdir: Workdir) -> dict[str, Any]:
  """Where to resume in the data, whose splits have the fingerprints `now`.

  Raises:
    DataError: they have changed since the checkpoint, and the run had not stopped there, or later, at an error in them.
  """
  position, old = restored.position, restored.about["data"]
  if old == now:
    return position
  stopped = workdir.step_of_data_error()
  if stopped is None or stopped < int(restored.state.step):  # later where hosts share a run: they could not save
    changed = " and ".join(f"split {split!r}" for split in old if old[split] != now[split])
    raise DataError(changed, f"not what the run in {workdir.root} was trained with")
  print("the data have changed since the run stopped at an error in them; resuming at the same position", flush=True)
  return position | {"source": now["train"]}


def _open_writer(workdir: Workdir, leaks: Sequence[str]) -> MetricsWriter:
  try:
    return MetricsWriter(workdir.metrics, workdir.tensorboard, leaks)
  except OSError as error:
    raise WorkdirError(f"cannot write to {workdir.metrics}: {error.strerror}") from None


def _line(error: Exception) -> str:
  """What went wrong with the data, in one line."""
  if isinstance(error, DataError):
    return str(error)
  if isinstance(error, StopIteration):
    return "split 'train': holds no further example"
  return f"reading the data failed: {type(error).__name__}: {error}".splitlines()[0]


def _is_idle(newest_loss: Any) -> bool:
  """Whether the device has computed all steps that it was given."""
  return newest_loss is None or newest_loss.is_ready()


def _newest_records(workdir: Workdir) -> dict[str, Record]:
  """The newest record of each kind on disk."""
  return {record["kind"]: record for record in read_metrics(workdir.metrics)}


def _introduction(setup: Setup, state: TrainState) -> str:
  sizes = {path: leaf.size for path, leaf in by_path(state.params).items()}
  parameters, mesh = sum(sizes.values()), setup.mesh
  frozen = round(sum(size * np.mean(setup.frozen(path)) for path, size in sizes.items()))
  parts = f" ({parameters - frozen:,} trained, {frozen:,} frozen)" if frozen else ""
  axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
  devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices, {axes}"
  return (
    f"{parameters:,} parameters{parts} on {devices} ({mesh.devices.flat[0].device_kind}); the first step is compiled"
  )
