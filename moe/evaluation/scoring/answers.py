"""A model's answers to the examples of a task's split, which is read and tokenized before anything is trained."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moe.config import require
from moe.data import DataError, Vocabulary
from moe.data.vocabulary import EOS
from moe.evaluation.scoring.decode import make_greedy_decoder
from moe.evaluation.scoring.metrics import RESERVED, Score, of_majority, score
from moe.evaluation.scoring.rank import LabelTokens, label_tokens, make_ranker
from moe.evaluation.scoring.rows import Rows, ShortRows, for_short_rows, in_rows, row_lengths
from moe.parallel.mesh import local_rows, put_batch
from moe.training.experiment import ExperimentConfig, ScoreConfig

# Batches that the device is given before the first result is read: it never waits for the host.
_AHEAD = 8


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a model answered.

  Attributes:
    text: as written, or the label's.
    prediction: after the task's postprocessing, for its metrics.
    scores: the labels' log-likelihoods; () for decoded text.
  """

  text: str
  prediction: Any
  scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class TaskSplit:
  """The examples of one task and split, ready to be answered.

  Attributes:
    task: a `ScoredTask` of `moe.data.tasks`.
    split: its name, as the task has it.
    examples: `TaskExample`s.
    batches: the rows of their inputs.
    labels: the texts that are ranked; () to decode.
    label_tokens: the same for the device; None to decode.
    metric: the one that counts; empty if labels are hidden.
    majority: the metrics of the most frequent answer.
  """

  task: Any
  split: str
  examples: Sequence[Any]
  batches: Sequence[Rows]
  labels: tuple[str, ...]
  label_tokens: LabelTokens | None
  metric: str
  majority: dict[str, float]

  def score(self, answers: Sequence[Answer]) -> Score:
    """The metrics of the answers to all examples."""
    targets, predictions = [one.target for one in self.examples], [one.prediction for one in answers]
    majority = self.majority.get(self.metric)
    return score(self.task.name, self.task.evaluate, self.metric, targets, predictions, majority)


class Answerer:
  """Answers tasks with the parameters of one model, on one mesh; programs are compiled when first needed.

  Args:
    config: of the run; its section `score` says how.
    vocabulary: of the data.
    mesh: of the devices; the rows of a batch are divided over it.
  """

  def __init__(self, config: ExperimentConfig, vocabulary: Vocabulary, mesh: Mesh):
    assert config.score is not None
    self._config, self._vocabulary, self._mesh = config, vocabulary, mesh
    model, data = short_rows(config).model, config.data
    if config.score.method == "rank":
      self._rank = make_ranker(model, mesh)
    else:
      row_length = model.stack_lengths(data.inputs_length, data.targets_length)["decoder"]
      self._decode = make_greedy_decoder(model, mesh, data.targets_length, row_length)

  def __call__(self, params: Any, router_state: Any, split: TaskSplit) -> list[Answer]:
    """The answer to every example of a split, the same on every host."""
    answers: list[Any] = [None] * len(split.examples)
    for rows, found in _in_flight(self._results(params, router_state, split)):
      lengths = rows.batch["inputs_segments"].sum(axis=1)
      for number, result, length in zip(rows.examples, found, lengths):
        answers[number] = self._answer(split, split.examples[number], result, length)
    return answers

  def _results(self, params: Any, router_state: Any, split: TaskSplit) -> Iterator[tuple[Rows, jax.Array]]:
    for rows in split.batches:
      here = local_rows(self._mesh, len(rows.batch["inputs"]))
      batch = put_batch(self._mesh, {name: array[here] for name, array in rows.batch.items()})
      if split.label_tokens is None:
        yield rows, self._decode(params, router_state, batch)
      else:
        yield rows, self._rank(params, router_state, batch, split.label_tokens)

  def _answer(self, split: TaskSplit, example: Any, result: np.ndarray, length: int) -> Answer:
    """The answer to an input of `length` tokens, from a row of what the device gave."""
    if split.label_tokens is not None:
      text = split.labels[int(result.argmax())]
      return Answer(text, split.task.postprocess(text, example), tuple(result.tolist()))
    if self._config.model.row_format == "targets":
      result = result[length : length + self._config.data.targets_length]
    text = self._vocabulary.decode(result.tolist())
    return Answer(text, split.task.postprocess(text, example), ())


def _in_flight(results: Iterator[tuple[Rows, jax.Array]]) -> Iterator[tuple[Rows, np.ndarray]]:
  """The results on the host, each read when the device has a few later batches to compute."""
  pending: collections.deque[tuple[Rows, jax.Array]] = collections.deque()
  for each in results:
    pending.append(each)
    if len(pending) > _AHEAD:
      rows, found = pending.popleft()
      yield rows, np.asarray(found)
  for rows, found in pending:
    yield rows, np.asarray(found)


def short_rows(config: ExperimentConfig) -> ShortRows:
  """How the model of a run reads rows that are shorter than those of training."""
  data, model = config.data, config.model
  return for_short_rows(model, model.stack_lengths(data.inputs_length, data.targets_length))


def is_batch_independent(config: ExperimentConfig) -> bool:
  """Whether no example's answer depends on the other rows of its batch."""
  found = short_rows(config).independent
  decodes = config.score is not None and config.score.method == "decode"  # each row alone, whatever its router
  return all(alone or (decodes and stack == "decoder") for stack, alone in found.items())


def read_split(config: ExperimentConfig, vocabulary: Vocabulary, task: Any, split: str) -> TaskSplit:
  """Reads, tokenizes and checks the examples of a task's split.

  Args:
    config: of the run, with a section `score`.
    vocabulary: of the data.
    task: a `ScoredTask`.
    split: as the task names it.

  Raises:
    ConfigError: the task has no labels to rank, or one that does not fit a row of targets; or it has no such metric.
    DataError: the split is missing, holds no example, or cannot be read.
  """
  settings, data = config.score, config.data
  assert settings is not None
  labels = _labels(settings, task)
  ids = [np.append(vocabulary.encode(label), EOS).astype(np.int32) for label in labels]
  for label, tokens in zip(labels, ids):
    expected = f"expected at least {len(tokens)}, the tokens of the label {label!r} of task {task.name}, EOS included"
    require(len(tokens) <= data.targets_length, "config.data.targets_length", data.targets_length, expected)
  all_of_them = task.examples(split)
  examples = list(itertools.islice(all_of_them, settings.examples or None))
  if any(example.target is None for example in examples):
    examples += all_of_them  # a server takes no file that lacks some
  if not examples:
    raise DataError(f"split {split!r}", f"holds no example of task {task.name}")
  prompts = [data.objective.prompt(example.inputs, data.row_shape(config.model.row_format)) for example in examples]
  reads, first = short_rows(config), next(iter(config.model.stacks))
  batches = in_rows(prompts, config.score_rows, row_lengths(data.inputs_length, reads.short[first]))
  ranked = None
  if labels:
    length = max(map(len, ids)) if reads.short["decoder"] else data.targets_length
    ranked = label_tokens(ids, length, causal=not config.model.evaluates_on_future)
  metric, majority = _metric(settings, task, examples, labels)
  return TaskSplit(task, split, examples, batches, labels, ranked, metric, majority)


def _labels(settings: ScoreConfig, task: Any) -> tuple[str, ...]:
  if settings.method == "decode":
    return ()
  labels = settings.labels or tuple(task.labels)
  expected = f"expected 'decode', or config.score.labels: any text can be the answer to task {task.name}"
  require(len(labels) > 0, "config.score.method", settings.method, expected)
  own = not task.labels or set(labels) <= set(task.labels)
  require(own, "config.score.labels", labels, f"expected some of {', '.join(task.labels)}, as of task {task.name}")
  return labels


def _metric(
  settings: ScoreConfig, task: Any, examples: Sequence[Any], labels: Sequence[str]
) -> tuple[str, dict[str, float]]:
  """The metric that counts, and the metrics of the most frequent answer; none where labels are hidden."""
  targets = [example.target for example in examples]
  if any(target is None for target in targets):
    return "", {}
  labels = labels or tuple(task.labels)
  constants = [[task.postprocess(label, example) for example in examples] for label in labels]
  majority = of_majority(task.evaluate, targets, constants)
  names = list(majority or task.evaluate(targets, targets))
  metric = settings.metric or task.metric or names[0]
  taken = [name for name in names if name in RESERVED]
  require(not taken, "config.data.source.task", task.name, f"expected no metric by the name of {', '.join(taken)}")
  expected = f"expected one of {', '.join(names)}, the metrics of task {task.name}"
  require(metric in names, "config.score.metric", metric, expected)
  return metric, majority
