"""Tasks to score: examples with what metrics compare predictions to."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe.config import in_section, require
from moe.data.errors import DataError
from moe.data.tasks.glue import GlueTask
from moe.data.tasks.server_files import server_file
from moe.data.vocabulary import EOS, Vocabulary

if TYPE_CHECKING:
  from moe.data.sources.task import TaskConfig


@dataclasses.dataclass(frozen=True)
class TaskExample:
  """One example.

  Attributes:
    inputs: int32 `[n]`, ids without EOS, after the task's preprocessors.
    text: the inputs as text.
    target: what the metrics take; None where the label is hidden.
    features: the preprocessed example, for `ScoredTask.postprocess` and `ScoredTask.server_file`.
  """

  inputs: np.ndarray
  text: str
  target: Any
  features: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ScoredTask:
  """A task with metrics.

  Attributes:
    name: in seqio's registry.
    labels: their texts, in the order of the data set's own label numbers (STS-B: of the scores, upward);
      none where any text can be the answer.
    metric_fns: seqio's, fn(targets, predictions) to values by name. Ours are fractions, at most 1.
    metric: the name of the primary metric; empty for a user's own task, of which it is the first that is reported.
    reader: from the name of a split to preprocessed examples, each with what to call it in an error.
    postprocess_fn: seqio's, of the task.
    vocabulary: of the ids.
    glue: which task of GLUE or SuperGLUE it is; None for a user's own.
  """

  name: str
  labels: tuple[str, ...]
  metric_fns: tuple[Callable[..., Mapping[str, Any]], ...]
  metric: str
  reader: Callable[[str], Iterator[tuple[str, Mapping[str, Any]]]]
  postprocess_fn: Callable[..., Any]
  vocabulary: Vocabulary
  glue: GlueTask | None

  def examples(self, split: str) -> Iterator[TaskExample]:
    """One pass over a split, or over a part of one such as "train[:90%]", in order.

    Raises:
      DataError: no such split, or it cannot be read; one of our own tasks has an example without any text.
    """
    for where, features in self.reader(split):
      if self.glue is not None:
        self.glue.check(features, where)
      inputs = _without_eos(features["inputs"])
      text, targets = (self._text(features, name) for name in ("inputs", "targets"))
      hidden = self.glue is not None and self.glue.is_hidden(features)
      target = None if hidden else self._postprocess(targets, features, where, is_target=True)
      yield TaskExample(inputs, text, target, features)

  def postprocess(self, text: str, example: TaskExample) -> Any:
    """What the metrics take of a predicted text."""
    return self._postprocess(text, example.features, self.name, is_target=False)

  def evaluate(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Every metric that is a number, by name, in the order of the task's metrics.

    Raises:
      DataError: a metric fails, or none gives a number.
    """
    values: dict[str, float] = {}
    for function in self.metric_fns:
      try:
        found = dict(function(targets, predictions))
      except Exception as error:  # a user's function: anything can go wrong in it
        raise DataError(self.name, f"one of its metric_fns fails ({type(error).__name__}: {error})") from error
      for name, value in found.items():
        value = np.asarray(getattr(value, "value", value))  # seqio.metrics.Scalar has one
        if value.ndim == 0 and np.issubdtype(value.dtype, np.number):
          values[name] = float(value)
    if not values:
      raise DataError(self.name, "expected a number from one of its metric_fns(targets, predictions)")
    return values

  def server_file(
    self, examples: Sequence[TaskExample], predictions: Sequence[Any], split: str = "test"
  ) -> tuple[str, str] | None:
    """The name and content of the file that the GLUE or SuperGLUE server takes; None for a user's own task.

    Args:
      examples: all of the split.
      predictions: of each, as `postprocess` gives them.
      split: of the examples: "test" or, of MNLI, "test_mismatched".
    """
    if self.glue is None:
      return None
    return server_file(self.glue, [example.features for example in examples], predictions, split)

  def _text(self, features: Mapping[str, Any], name: str) -> str:
    text = features.get(f"{name}_pretokenized")
    if text is None:
      return self.vocabulary.decode(features[name])
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)

  def _postprocess(self, text: str, features: Mapping[str, Any], where: str, is_target: bool) -> Any:
    try:
      return self.postprocess_fn(text, example=features, is_target=is_target)
    except Exception as error:  # a user's function: anything can go wrong in it
      raise DataError(where, f"the task's postprocess_fn fails ({type(error).__name__}: {error})") from error


def _without_eos(ids: np.ndarray) -> np.ndarray:
  ids = np.asarray(ids)
  return ids[: len(ids) - (len(ids) > 0 and ids[-1] == EOS)].astype(np.int32)


def open_scored_tasks(source: "TaskConfig", vocabulary: Vocabulary, lengths: Mapping[str, int]) -> list[ScoredTask]:
  """The task of a source, or each task with metrics of a mixture.

  Args:
    source: which task.
    vocabulary: of the model.
    lengths: tokens per row of "inputs" and "targets", for the tasks' preprocessors.

  Raises:
    ConfigError: no such task, not prepared, of another vocabulary, or without metrics.
  """
  from moe.data.formats.seqio_registry import open_readers  # imports TensorFlow

  with in_section("config.data.source"):
    found = open_readers(source, vocabulary, lengths)
    tasks = [
      ScoredTask(
        name=task.name,
        labels=glue.labels if glue else (),
        metric_fns=tuple(task.predict_metric_fns),
        metric=glue.metric if glue else "",
        reader=reader,
        postprocess_fn=task.postprocess_fn,
        vocabulary=vocabulary,
        glue=glue,
      )
      for task, glue, reader in found
      if task.predict_metric_fns
    ]
    expected = "expected a seqio task with metric_fns(targets, predictions), or a mixture with one, to be scored"
    require(bool(tasks), "task", source.task, expected)
  return tasks
