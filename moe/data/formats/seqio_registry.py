"""seqio's tasks and mixtures by name. Imports TensorFlow: import it where it is needed."""

import contextlib
import difflib
import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe.config import ConfigError, first_line, require
from moe.data.errors import DataError
from moe.data.formats.seqio_mixture import MixtureSource
from moe.data.formats.seqio_reading import (
  TaskReader,
  TaskSource,
  TfdsTextSource,
  check_task,
  glue_of,
  one_line,
  whole_split,
)
from moe.data.quiet_import import quiet_import
from moe.data.source import Source
from moe.data.sources.task import TaskConfig
from moe.data.tasks.glue import GlueTask
from moe.data.tasks.registration import RegisteredTask, register
from moe.data.vocabulary import Vocabulary

with quiet_import():
  import absl.logging
  import seqio
  import tensorflow as tf

# From the name of a split to its preprocessed examples, each with what to call it in an error.
Reader = Callable[[str], Iterator[tuple[str, Mapping[str, Any]]]]


def open_task(config: TaskConfig, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> Source:
  """The registered task or mixture of that name; otherwise the TFDS dataset of that name.

  Args:
    config: what to read.
    split: "train", "validation", or the task's own name of a split.
    vocabulary: the task's, or what tokenizes a dataset's text.
    lengths: tokens per row of "inputs" and "targets", for the task's preprocessors.
    seed: of the task's preprocessors.

  Raises:
    ConfigError: no such module, task, dataset or text feature; or a task has another vocabulary, or is not prepared.
    DataError: no such split, or the data cannot be read.
  """
  found = _find(config, vocabulary)
  if found is None:
    return TfdsTextSource(config, config.split(split), vocabulary, _similar(config.task))
  open_one = functools.partial(TaskSource, split=config.split(split), vocabulary=vocabulary, lengths=lengths, seed=seed)
  if isinstance(found, seqio.Task):
    return open_one(found)
  if split == "train":
    rates = _rates(found)
    return MixtureSource(found.name, [open_one(task) for task, _ in rates], [r for _, r in rates], True, seed)
  sources = [open_one(task) for task in _tasks(found) if _has(task, config.split(split))]
  sources = [source for source in sources if source.reader.rows]
  if not sources:
    raise DataError(f"split {config.split(split)!r}", f"expected one in which a task of {found.name} has examples")
  return MixtureSource(found.name, sources, [source.reader.rows for source in sources], False, seed)


def open_readers(
  config: TaskConfig, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> list[tuple[seqio.Task, GlueTask | None, Reader]]:
  """A registered task, or every task of a mixture: the task, what it is if it is ours, and a reader of its splits.

  Raises:
    ConfigError: as `open_task`, and where the name is that of a TFDS dataset.
  """
  found = _find(config, vocabulary)
  expected = f"expected a registered seqio task or mixture{_similar(config.task)}"
  require(found is not None, "task", config.task, expected)
  tasks = [found] if isinstance(found, seqio.Task) else _tasks(found)
  for task in tasks:
    check_task(task, vocabulary)

  def read(task: seqio.Task, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return TaskReader(task, config.split(split), lengths, seed=0).all_examples()

  return [(task, glue_of(task), functools.partial(read, task)) for task in tasks]


def _find(config: TaskConfig, vocabulary: Vocabulary) -> seqio.Task | seqio.Mixture | None:
  """The registered task or mixture of that name, after importing `config.modules`; None if there is none."""
  # TensorFlow would otherwise reserve the accelerator's memory.
  tf.config.set_visible_devices([], "GPU")
  register(vocabulary, os.path.expanduser(config.data_dir))
  for module in config.modules:
    try:
      importlib.import_module(module)
    except Exception as error:  # a module is a program: anything can go wrong in it
      wanted = f"expected a module that can be imported ({type(error).__name__}: {first_line(error)})"
      raise ConfigError("modules", module, wanted) from None
  known = seqio.get_global_cache_dirs()
  seqio.add_global_cache_dirs([folder for folder in config.cache_dirs if folder not in known])
  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    if config.task in registry.names():
      return registry.get(config.task)
  return None


def _similar(name: str) -> str:
  """What else the user may have meant by a name that is not registered."""
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  similar = difflib.get_close_matches(name, known)
  return f"; similar ones are {', '.join(similar)}" if similar else ""


def _tasks(mixture: seqio.Mixture) -> list[seqio.Task]:
  """The tasks of a mixture, sorted by name."""
  return [_current(task) for task in mixture.tasks]


def _current(task: seqio.Task) -> seqio.Task:
  """The same task; of GLUE and SuperGLUE the one for the vocabulary in use."""
  return seqio.TaskRegistry.get(task.name) if isinstance(task, RegisteredTask) else task


def _rates(mixture: seqio.Mixture) -> list[tuple[seqio.Task, float]]:
  """The tasks of a mixture that have a rate, with it."""
  for task in _tasks(mixture):
    if isinstance(task, RegisteredTask):
      task.require_prepared()
  with one_line(mixture.name), _no_warnings():
    rates = [(_current(task), float(mixture.get_rate(task))) for task in mixture.tasks]
  for task, rate in rates:
    expected = f"expected rates that are finite and not negative; that of {task.name} is {rate}"
    require(math.isfinite(rate) and rate >= 0, "task", mixture.name, expected)
  rates = [(task, rate) for task, rate in rates if rate > 0]
  require(bool(rates), "task", mixture.name, "expected a mixture with at least one positive rate")
  return rates


def _has(task: seqio.Task, split: str) -> bool:
  if isinstance(task, RegisteredTask):
    task.require_prepared()
  with one_line(task.name):
    return whole_split(split) in task.splits


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
  """For seqio warns of every task that is not cached when it asks for its number of examples."""
  before = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)
  try:
    yield
  finally:
    absl.logging.set_verbosity(before)
