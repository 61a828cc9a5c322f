"""The hook that scores tasks in training, where validation is due."""

import pathlib
from typing import Any

import jax

from moe.data import DataError, Vocabulary
from moe.data.sources.task import TaskConfig
from moe.data.tasks import open_scored_tasks
from moe.evaluation.scoring.answers import Answer, Answerer, TaskSplit, read_split
from moe.evaluation.scoring.metrics import Score, as_record
from moe.evaluation.scoring.results import (
  SPLITS,
  read_scores,
  selections,
  write_predictions,
  write_scores,
)
from moe.training.experiment import HELD_OUT, VALIDATION, ExperimentConfig
from moe.training.feed import open_vocabulary
from moe.training.hooks import Run, StepInfo, TrainingStopped
from moe.training.workdir import Workdir


def make_score_hook(config: ExperimentConfig, folder: str | pathlib.Path) -> "ScoreHook | None":
  """The hook of a run in this workdir; None if its config has no section `score`.

  Raises:
    ConfigError, DataError: what is wrong with the config, its tasks or their data.
    WorkdirError: the folder holds another run.
  """
  if config.score is None:
    return None
  workdir = Workdir(folder)
  workdir.check(config)
  config = workdir.with_vocabulary(config)
  return ScoreHook(config, open_vocabulary(config))


class ScoreHook:
  """Scores every task of a run on the splits that its section `score` names; made before anything is trained.

  It records the scores, rewrites `scores.json`, and keeps the predictions on the validation split of a step that is the
  best so far, by either way to select.

  Args:
    config: of the run, with a section `score`.
    vocabulary: of its data.
    tasks: `ScoredTask`s; None for those of the source.

  Raises:
    ConfigError, DataError: as `read_split`; or a label is hidden.
  """

  def __init__(self, config: ExperimentConfig, vocabulary: Vocabulary, tasks: list[Any] | None = None):
    assert config.score is not None and isinstance(config.data.source, TaskConfig)
    if tasks is None:
      tasks = open_scored_tasks(config.data.source, vocabulary, config.data.lengths)
    self._vocabulary = vocabulary
    self._splits: dict[str, list[TaskSplit]] = {
      kind: [read_split(config, vocabulary, task, split) for task in tasks]
      for kind, split in config.score.splits(config.data.source).items()
    }
    for splits in self._splits.values():
      for each in splits:
        if not each.metric:
          raise DataError(
            f"split {each.split!r}", f"hides labels of task {each.task.name}: nothing can be scored on it"
          )
    self._answerer: Answerer | None = None

  def __call__(self, run: Run, info: StepInfo) -> None:
    """Raises `TrainingStopped` if a result cannot be written."""
    if not info.validate:
      return
    if self._answerer is None:
      self._answerer = Answerer(run.config, self._vocabulary, run.mesh)
    params, router_state = info.state.params, info.state.router_state
    answers: dict[str, list[list[Answer]]] = {}
    scores: dict[str, list[Score]] = {}
    for kind, splits in self._splits.items():
      answers[kind] = [self._answerer(params, router_state, split) for split in splits]
      scores[kind] = [split.score(found) for split, found in zip(splits, answers[kind])]
      run.record(info.step, kind, as_record(scores[kind]))
    self._show(run, info.step, scores)
    if jax.process_index() == 0:
      try:
        write_scores(run.config, run.workdir)
        if info.step in selections(read_scores(run.workdir)).values():
          for split, found in zip(self._splits[VALIDATION], answers[VALIDATION]):
            write_predictions(run.workdir.predictions, info.step, split, found)
      except OSError as error:
        raise TrainingStopped(f"{error.filename}: {error.strerror}; {run.what_is_saved()}") from None
    run.clock.restart()

  def _show(self, run: Run, step: int, scores: dict[str, list[Score]]) -> None:
    """A line for each task, and one for the mean of several."""
    if len(scores[VALIDATION]) > 1:
      means = [f"{SPLITS[kind]} {run.newest[kind]['mean']:.4f}" for kind in scores]
      run.progress.line(f"score at step {step}: mean of {len(scores[VALIDATION])} tasks, {', '.join(means)}")
    for number, one in enumerate(scores[VALIDATION]):
      low, high = one.interval
      text = f"{one.task} {one.metric} {one.value:.4f} [{low:.4f}, {high:.4f}]"
      if HELD_OUT in scores:
        text += f", held out {scores[HELD_OUT][number].value:.4f}"
      text += "" if one.majority is None else f", majority {one.majority:.4f}"
      run.progress.line(f"score at step {step}: {text}, n {one.n:,}; {run.progress.left(step)} left")
