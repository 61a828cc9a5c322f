"""What a study keeps of a finished run, besides its scores, and of one that diverged."""

import math
import pathlib
from typing import Any

from moe.evaluation.perplexity import batch_losses
from moe.evaluation.restore import Trained, restore
from moe.evaluation.rules import causal_twin_of, under_causal_rule
from moe.models.count import count_parameters
from moe.studies.flops import run_flops, step_flops
from moe.training.experiment import ExperimentConfig
from moe.training.metrics_file import Record, read_metrics
from moe.training.workdir import Workdir


def outcome(config: ExperimentConfig, folder: pathlib.Path, blocks: int) -> dict[str, Any]:
  """The fields `curve`, `blocks`, `flops` and `parameters` of a `Result`.

  Args:
    config: of the run.
    folder: its workdir.
    blocks: batches of the validation split to evaluate one by one.
  """
  records = read_metrics(Workdir(folder).metrics)
  return {
    "curve": [_point(record) for record in records if record["kind"] == "validation"],
    "blocks": _blocks(restore(folder, "latest"), blocks),
    "flops": run_flops(step_flops(config, forward=True), records)[-1].total,
    "parameters": count_parameters(config.model, 1).total,
  }


def diverged_outcome(config: ExperimentConfig, folder: pathlib.Path, blocks: int) -> dict[str, Any]:
  """What `outcome` gives, and the steps made, of a run that diverged: infinite losses from then on."""
  records = read_metrics(Workdir(folder).metrics)
  points = {record["step"]: _point(record) for record in records if record["kind"] == "validation"}
  due = [step for step in range(1, config.train.steps + 1) if config.train.validates_at(step)]
  made = run_flops(step_flops(config, forward=True), (record for record in records if "steps" in record))
  rules = ["own"] if causal_twin_of(config.model) is None else ["own", "causal"]
  return {
    "step": made[-1].step if made else 0,
    "curve": [points.get(step, {"step": step, "loss": math.inf}) for step in due],
    "blocks": {rule: [math.inf] * blocks for rule in rules},
    "flops": made[-1].total if made else 0.0,
    "parameters": count_parameters(config.model, 1).total,
  }


def _point(record: Record) -> dict[str, float]:
  """A validation: its step, its loss, and the mean over layers of the routers' entropy and largest load."""
  point = {"step": record["step"], "loss": record["loss"]}
  for name in ("gate_entropy", "load_max"):
    layers = [value for key, value in record.items() if key.endswith(f"/{name}")]
    if layers:
      point[name] = sum(layers) / len(layers)
  return point


def _blocks(trained: Trained, number: int) -> dict[str, list[float]]:
  """The losses of the first batches of the validation split, under the router's own rule and its causal twin's."""
  honest = under_causal_rule(trained)
  rules = {"own": trained} | ({} if honest is None else {"causal": honest})
  return {rule: batch_losses(one, one.config.data, "validation", number) for rule, one in rules.items()}
