"""What scoring leaves in a workdir: `scores.json`, and predictions as JSON lines; and the tables that are printed."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe.evaluation.scoring.answers import Answer, TaskSplit, is_batch_independent
from moe.evaluation.scoring.metrics import Score, from_record
from moe.files import AnyPath, write_numbered, write_whole
from moe.training.experiment import HELD_OUT, VALIDATION, ExperimentConfig
from moe.training.metrics_file import Record, read_metrics
from moe.training.workdir import Workdir

# The split of each kind of record, in words.
SPLITS = {VALIDATION: "validation", HELD_OUT: "held out"}


def chosen_step(scores: Mapping[int, float]) -> int | None:
  """The step of the highest score, the last of equal ones, as `Checkpoints.best`; None if there is no finite score."""
  finite = [step for step, score in scores.items() if math.isfinite(score)]
  return max(finite, key=lambda step: (scores[step], step), default=None)


def read_scores(workdir: Workdir) -> dict[str, dict[int, Record]]:
  """The records of scores, by kind and step."""
  found: dict[str, dict[int, Record]] = {VALIDATION: {}, HELD_OUT: {}}
  for record in read_metrics(workdir.metrics):
    if record["kind"] in found:
      found[record["kind"]][record["step"]] = record
  return found


def selections(found: Mapping[str, Mapping[int, Record]]) -> dict[str, int | None]:
  """The step that each way to select chooses."""
  means = {kind: {step: float(record["mean"]) for step, record in steps.items()} for kind, steps in found.items()}
  return {"held_out": chosen_step(means[HELD_OUT]), "published": chosen_step(means[VALIDATION])}


def summarize_scores(config: ExperimentConfig, workdir: Workdir) -> dict[str, Any]:
  """The content of `scores.json`, from the records in `metrics.jsonl`."""
  assert config.score is not None
  found = read_scores(workdir)
  return {
    "method": config.score.method,
    "selection": config.score.selection,
    "batch_independent": is_batch_independent(config),
    **{name: step and _selected(found, step) for name, step in selections(found).items()},
    "steps": {
      str(step): {name: _split(found[kind].get(step)) for kind, name in SPLITS.items()} for step in found[VALIDATION]
    },
  }


def write_scores(config: ExperimentConfig, workdir: Workdir) -> None:
  """Writes `scores.json`, or replaces it."""
  write_whole(workdir.scores, json.dumps(summarize_scores(config, workdir), indent=2) + "\n")


def _selected(found: Mapping[str, Mapping[int, Record]], step: int) -> dict[str, Any]:
  return {"step": step} | {SPLITS[kind].replace(" ", "_"): _split(found[kind].get(step)) for kind in SPLITS}


def _split(record: Record | None) -> dict[str, Any] | None:
  if record is None:
    return None
  return {"mean": record["mean"], "tasks": as_json(from_record(record))}


def as_json(scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
  """The scores by task, as JSON has them."""
  return {
    one.task: {
      "metric": one.metric,
      "score": one.value,
      "interval": list(one.interval),
      "majority": one.majority,
      "n": one.n,
      "metrics": dict(one.metrics),
    }
    for one in scores
  }


def write_predictions(folder: AnyPath, step: int, split: TaskSplit, answers: Sequence[Answer]) -> AnyPath:
  """Writes a JSON line for each example: input, label, text, prediction, and as `options` all labels with
  their log-likelihoods.

  Nothing is ever overwritten: if there is such a file, the new one has a number behind its name.
  """
  lines = []
  for example, answer in zip(split.examples, answers, strict=True):
    line = {"input": example.text, "label": example.target, "text": answer.text, "prediction": answer.prediction}
    if answer.scores:
      line["options"] = dict(zip(split.labels, answer.scores, strict=True))
    lines.append(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")
  name = f"step-{step}-{split.task.name}-{split.split}".replace("/", "-")
  return write_numbered(folder / f"{name}.jsonl", "".join(lines))


def score_lines(config: ExperimentConfig, workdir: Workdir) -> list[str]:
  """The tables of a run's validation split, at the step that each way to select chooses; none without scores."""
  found, lines = read_scores(workdir), []
  words = {"held_out": "best on what was held out of training", "published": "best on the validation split itself"}
  for name, step in selections(found).items():
    if step is not None and step in found[VALIDATION]:
      record = found[VALIDATION][step]
      lines.append(f"{name}: scores on validation at step {step}, {words[name]}; mean {float(record['mean']):.4f}")
      lines += [f"  {line}" for line in table(from_record(record))]
  if not lines:
    return []
  if not is_batch_independent(config):
    lines.append("a router decides on a whole batch: scores depend on its rows, which are the same each time")
  return [*lines, f"scores:     {workdir.scores}"]


def _plain(value: Any) -> Any:
  """NumPy's numbers and arrays, and bytes, as JSON has them; anything else as text."""
  if hasattr(value, "tolist"):
    return value.tolist()
  return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def table(scores: Sequence[Score]) -> list[str]:
  """A header and a line for each task: its metric with the interval, the most frequent answer's, the examples."""
  width = max(len("task"), *(len(one.task) for one in scores))
  metric = max(len("metric"), *(len(one.metric) for one in scores))
  lines = [f"{'task':{width}}  {'metric':{metric}}    score  95% interval        majority       n"]
  for one in scores:
    majority = "unknown" if one.majority is None else f"{one.majority:.4f}"
    between = f"[{one.interval[0]:.4f}, {one.interval[1]:.4f}]"
    about = f"{one.value:7.4f}  {between:18}  {majority:>8}  {one.n:6,}"
    lines.append(f"{one.task:{width}}  {one.metric:{metric}}  {about}")
  return lines
