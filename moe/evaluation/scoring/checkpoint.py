"""The answers of a checkpoint to a split of its tasks: scores, or files for the servers where labels are hidden."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from moe.data import DataConfig
from moe.data.sources.task import TaskConfig
from moe.data.tasks import open_scored_tasks
from moe.evaluation.restore import Trained, check_vocabulary
from moe.evaluation.scoring.answers import Answer, Answerer, TaskSplit, read_split
from moe.evaluation.scoring.metrics import Score
from moe.evaluation.scoring.results import write_predictions
from moe.files import AnyPath, write_numbered
from moe.training.feed import open_vocabulary


@dataclasses.dataclass(frozen=True)
class Answered:
  """A split of a task with its answers."""

  split: TaskSplit
  answers: Sequence[Answer]

  def score(self) -> Score:
    """The metrics, where labels are not hidden."""
    return self.split.score(self.answers)

  def write(self, folder: AnyPath, step: int) -> list[AnyPath]:
    """Writes the predictions and, where labels are hidden, the file that the task's server takes, if there is one.

    Nothing is overwritten; see `write_predictions`. Raises `OSError`.
    """
    paths = [write_predictions(folder, step, self.split, self.answers)]
    if not self.split.metric:
      predictions = [answer.prediction for answer in self.answers]
      file = self.split.task.server_file(self.split.examples, predictions, self.split.split)
      if file is not None:
        name, text = file
        paths.append(write_numbered(folder / f"step-{step}" / name, text))
    return paths


def answer_split(trained: Trained, data: DataConfig, split: str, tasks: Sequence[Any] | None = None) -> list[Answered]:
  """Answers every task of the data; empty for a run without a section `score`, or for data that are no task.

  Args:
    trained: from `moe.evaluation.restore`.
    data: the data section, of the run or another one.
    split: "train", "validation" or another one of the tasks.
    tasks: `ScoredTask`s; None for those of the data.

  Raises:
    ConfigError, DataError: something is wrong with the data, or its vocabulary is not the checkpoint's.
  """
  if trained.config.score is None or not isinstance(data.source, TaskConfig):
    return []
  config = dataclasses.replace(trained.config, data=data)
  config.check_mesh(trained.mesh)
  vocabulary = open_vocabulary(config)
  check_vocabulary(trained, vocabulary)
  if tasks is None:
    tasks = open_scored_tasks(data.source, vocabulary, data.lengths)
  splits = [read_split(config, vocabulary, task, data.source.split(split)) for task in tasks]
  answerer = Answerer(config, vocabulary, trained.mesh)
  return [Answered(each, answerer(trained.params, trained.router_state, each)) for each in splits]
