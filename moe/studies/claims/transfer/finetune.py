"""Fine-tuning on eleven tasks: Zhou et al. 2022, tables 2 and 3."""

import dataclasses
import glob
import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.config import override, require
from moe.data.formats.prepared import prepared_examples, tfds_directory
from moe.data.tasks.glue import ELEVEN as TASKS
from moe.data.tasks.glue import TASKS as GLUE
from moe.markdown import markdown_table
from moe.studies.comparison import Scores, compare_over_tasks
from moe.studies.reporting import figure
from moe.studies.repository import repository_config
from moe.studies.settings import best_rates, tried_rates
from moe.studies.study import Headline, Inputs, Job, Result, Study
from moe.training.workdir import Workdir

# Table 3 for 100M/64E: the size of the published models next to ours. Dense is published for 8B alone.
PUBLISHED = {
  "switch": dict(zip(TASKS, (73.2, 85.9, 64.1, 80.8, 81.3, 89.4, 88.9, 74.1, 91.8, 64.4, 68.8))),
  "gshard": dict(zip(TASKS, (77.5, 84.4, 85.2, 85.2, 81.3, 89.7, 90.5, 79.3, 95.1, 67.8, 68.8))),
  "expert_choice": dict(zip(TASKS, (79.7, 89.1, 88.3, 86.7, 84.4, 91.3, 91.0, 81.6, 95.1, 65.6, 71.7))),
}
PUBLISHED_8B = {
  "dense": dict(zip(TASKS, (88.2, 100.0, 86.4, 91.3, 86.7, 94.7, 91.2, 92.2, 97.2, 75.6, 78.1))),
  "switch": dict(zip(TASKS, (89.1, 93.8, 88.3, 90.7, 89.3, 94.5, 92.1, 91.0, 97.1, 74.5, 78.1))),
  "gshard": dict(zip(TASKS, (89.5, 96.7, 87.5, 91.4, 91.7, 94.9, 92.5, 92.2, 98.0, 76.4, 82.8))),
  "expert_choice": dict(zip(TASKS, (89.2, 100.0, 89.1, 91.1, 90.6, 95.0, 93.8, 95.2, 97.7, 83.8, 92.8))),
}


# The arm of a run that was pretrained elsewhere.
PRETRAINED = "pretrained"


def _experts(number: int, d_ff: int, router: str) -> dict[str, Any]:
  """Experts in every second block of the encoder, of the form of the dense networks there."""
  return {"num_experts": number, "d_ff": d_ff, "feed_forward": "geglu", "router": {"name": router}}


@dataclasses.dataclass(frozen=True)
class Budget:
  """How large the study is.

  Attributes:
    base: config file of pretraining.
    pretraining: what of it is changed.
    arms: for each arm the MoE section of its encoder, of the base's activated FLOPs; None for dense.
    seeds: of pretraining, and of fine-tuning from it.
    tasks: of the eleven.
    rates: the grid of learning rates that every arm begins with.
    tuning: the tasks on which an arm's rate is chosen, with the first seed.
    steps: of fine-tuning, by task; where it is missing, the steps of the task's config.
    finetuning: what is changed of the tasks' configs.
  """

  base: str
  pretraining: Mapping[str, Any]
  arms: Mapping[str, Mapping[str, Any] | None]
  seeds: int
  tasks: Sequence[str]
  rates: Sequence[float]
  tuning: Sequence[str]
  steps: Mapping[str, int]
  finetuning: Mapping[str, Any]


def _arms(d_ff: int, num_experts: int) -> dict[str, Mapping[str, Any] | None]:
  """Encoders of equal activated FLOPs; all sparse ones have equal parameters.

  Two experts per token are half as wide as the dense network, one as wide.

  Args:
    d_ff: hidden width of the dense network.
    num_experts: of the arms with two experts per token; half as many of Switch's.
  """
  return {
    "dense": None,
    "switch": _experts(num_experts // 2, d_ff, "switch"),
    "gshard": _experts(num_experts, d_ff // 2, "gshard"),
    "expert_choice": _experts(num_experts, d_ff // 2, "expert_choice"),
  }


# Rows of several examples, since most are short; the same tokens per step as in pretraining.
_PACKED = {"data.pack": True, "data.inputs_length": 256, "data.targets_length": 64, "data.batch_size": 8}
_LONG = ("boolq", "mnli", "qnli", "qqp", "sst2")

BUDGETS = {
  "smoke": Budget(
    base="t5_mini.py",
    pretraining={"train.steps": 2, "optimizer.schedule.warmup_steps": 1, "train.eval_batches": 1},
    arms={"dense": None, "expert_choice": _experts(4, 256, "expert_choice")},
    seeds=1,
    tasks=("cb", "wnli"),
    rates=(0.01,),
    tuning=("cb",),
    steps={"cb": 2, "wnli": 2},
    finetuning=_PACKED | {"score.examples": 16, "data.batch_size": 2},
  ),
  "cpu": Budget(
    base="t5_mini.py",
    pretraining={"train.steps": 2000},
    arms=_arms(512, 16),
    seeds=2,
    tasks=TASKS,
    rates=(0.003, 0.01, 0.03),
    # The one task that models of this size leave the majority class on, within so few steps.
    tuning=("sst2",),
    steps=dict.fromkeys(TASKS, 100),
    finetuning=_PACKED | {"score.examples": 500},
  ),
  # About 40M parameters, 200M with experts; for one accelerator.
  "gpu": Budget(
    base="t5_mini.py",
    pretraining={
      "train.steps": 3000,
      "model.d_model": 512,
      "model.d_ff": 2048,
      "model.num_heads": 8,
      "model.d_head": 64,
      "model.dtype": "bfloat16",
      "model.encoder.layers": 8,
      "model.decoder.layers": 4,
      "data.inputs_length": 256,
      "data.targets_length": 64,
      "data.batch_size": 128,
    },
    arms=_arms(2048, 32),
    seeds=1,
    tasks=TASKS,
    rates=(0.001, 0.003, 0.01),
    tuning=("cola", "mrpc", "rte"),
    steps={task: 1000 if task in _LONG else 300 for task in TASKS},
    finetuning=_PACKED | {"data.batch_size": 64},
  ),
  # T5 1.1 base with 64 experts, and the recipe of `configs/finetune` as it stands.
  "paper": Budget(
    base="pretrain/expert_choice_t5.py",
    pretraining={"data.source.name": "text"},
    arms=_arms(2048, 64),
    seeds=3,
    tasks=TASKS,
    rates=(0.0003, 0.001, 0.003),
    tuning=("cola", "mrpc", "rte"),
    steps={},
    finetuning={},
  ),
}


@dataclasses.dataclass(frozen=True)
class Finetune(Study, name="finetune"):
  """Four models of equal activated FLOPs are pretrained alike and fine-tuned alike, on each task alone.

  Each arm's learning rate is the one of the grid with the highest mean score on the held-out tenth of the training
  split over a few tasks, with the first seed; all its runs have that rate. The primary contrast is expert choice
  against GShard's top-2: the mean over tasks of the difference in accuracy on the validation split, at the step that
  the held-out tenth chose. It is decided by the 95% interval of a bootstrap over tasks. Wins and losses by the sign
  test stand beside it, and so do the other two baselines, corrected by Holm.
  """

  claim = "Expert choice beats top-1, top-2 and a dense model of equal compute in the mean of eleven tasks."
  source = "Zhou et al. 2022, tables 2 and 3"
  budgets = tuple(BUDGETS)
  planned = ("paper",)
  reads = ("text", "data_dir")

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan = BUDGETS[budget]
    if inputs.pretrained:
      plan = dataclasses.replace(plan, arms={PRETRAINED: None}, seeds=1)
    tried, jobs = _tried(plan, results), []
    rates = best_rates(plan.rates, tried)
    for seed in range(plan.seeds if len(rates) == len(plan.arms) else 1):  # a study in progress has whole seeds
      if not inputs.pretrained:
        jobs += [_pretraining(plan, arm, seed, inputs) for arm in plan.arms]
      if seed == 0:
        jobs += [
          _finetuning(plan, inputs, task, arm, rate, seed)
          for task, rate, arm in itertools.product(plan.tuning, plan.rates, plan.arms)
        ]
        jobs += [
          _finetuning(plan, inputs, task, arm, rate, seed)
          for arm, losses in tried.items()
          for rate in tried_rates(plan.rates, losses)
          for task in plan.tuning
          if rate not in plan.rates
        ]
      jobs += [
        _finetuning(plan, inputs, task, arm, rates[arm], seed)
        for task, arm in itertools.product(plan.tasks, rates)
        if seed or task not in plan.tuning
      ]
    return jobs

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    found = not inputs.text or (glob.glob(inputs.text, recursive=True) and not os.path.isdir(inputs.text))
    require(bool(found), "--text", inputs.text, "expected a glob that matches at least one file of text")
    if inputs.pretrained:
      Workdir(inputs.pretrained, "--pretrained").load_config()
    for task in _tasks(budget):
      GLUE[task].require_prepared(str(tfds_directory(inputs.data_dir)), "--data_dir", inputs.data_dir, os.path.exists)

  def data_read(self, budget: str, inputs: Inputs) -> dict[str, int]:
    found = {task: prepared_examples(inputs.data_dir, GLUE[task].dataset) for task in _tasks(budget)}
    return {split: examples for of_task in found.values() for split, examples in of_task.items()}

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    plan = BUDGETS[budget]
    rates = best_rates(plan.rates, _tried(plan, results))
    tuned = [one for one in results if "task" in one.tags and rates.get(one.tags["arm"]) == one.tags["rate"]]
    scores = _by_arm_and_task(tuned)
    return {
      "pretraining": _validation_losses([result for result in results if "task" not in result.tags]),
      "rates": rates,
      "scores": [_row(result) for result in tuned],
      "accuracies": {
        arm: {task: [*seeds.values()] for task, seeds in of_arm.items()} for arm, of_arm in scores.items()
      },
      "majority": {result.tags["task"]: _task_score(result, "validation")["majority"] for result in tuned},
      "contrasts": compare_over_tasks(scores, "expert_choice", ("gshard", "switch", "dense")),
      "published": {"100M/64E": PUBLISHED, "8B/64E": PUBLISHED_8B},
    }

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    table = _lines_of_means(analysis["accuracies"], analysis["majority"]) if analysis["accuracies"] else []
    return [*table, "", *map(_sentence, analysis["contrasts"])]

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    if not analysis["contrasts"]:
      return None
    first = analysis["contrasts"][0]
    seeds = min(len(scores) for scores in analysis["accuracies"][first["arm"]].values())
    return Headline(first["verdict"], f"{first['arm']} against {first['baseline']}: {_number(first)}", seeds)

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    return figure.draw_tasks(analysis, path)


def _pretraining(plan: Budget, arm: str, seed: int, inputs: Inputs) -> Job:
  fields = dict(plan.pretraining) | {"seed": seed, "data.seed": seed, "data.source.path": inputs.text}
  experts = plan.arms[arm]
  fields["model.encoder.moe"] = None if experts is None else dict(experts)
  config = override(repository_config(plan.base), fields.items())
  return Job(_source(arm, seed), config, tags={"arm": arm, "seed": seed}, weight=config["train"]["steps"])


def _finetuning(plan: Budget, inputs: Inputs, task: str, arm: str, rate: float, seed: int) -> Job:
  config = repository_config(f"finetune/{task}.py")
  steps = plan.steps.get(task, config["train"]["steps"])
  fields = dict(plan.finetuning) | {
    "seed": seed,
    "data.seed": seed,
    "data.source.data_dir": inputs.data_dir,
    "optimizer.learning_rate": rate,
    "train.steps": steps,
    "train.eval_every": math.ceil(steps / 2),
    "train.checkpoint_every": steps,
    "train.keep": 1,
  }
  if inputs.pretrained:
    fields["init.workdir"] = inputs.pretrained
  return Job(
    f"{task}/{arm}/rate-{rate:g}/seed-{seed}",
    override(config, fields.items()),
    source="" if inputs.pretrained else _source(arm, seed),
    tags={"arm": arm, "seed": seed, "task": task, "rate": rate},
    weight=1.5 * steps,
  )


def _tasks(budget: str) -> list[str]:
  """All that models are tuned or compared on."""
  return sorted({*BUDGETS[budget].tasks, *BUDGETS[budget].tuning})


def _source(arm: str, seed: int) -> str:
  return f"pretrained/{arm}/seed-{seed}"


def _tried(plan: Budget, results: Sequence[Result]) -> dict[str, dict[float, float]]:
  """What is to be lowest, the mean score's negative, by arm and rate, where all tasks of the tuning are finished."""
  found: dict[str, dict[float, list[float]]] = {}
  for one in results:
    if one.tags.get("task") in plan.tuning and one.tags["seed"] == 0:
      found.setdefault(one.tags["arm"], {}).setdefault(one.tags["rate"], []).append(-_selection(one))
  return {
    arm: {rate: float(np.mean(each)) for rate, each in rates.items() if len(each) == len(plan.tuning)}
    for arm, rates in found.items()
  }


def _by_arm_and_task(results: Sequence[Result]) -> Scores:
  """Accuracies on the validation split."""
  found: dict[str, dict[str, dict[int, float]]] = {}
  for result in sorted(results, key=lambda result: result.tags["seed"]):
    arm, task, seed = (result.tags[name] for name in ("arm", "task", "seed"))
    found.setdefault(arm, {}).setdefault(task, {})[seed] = _accuracy(result)
  return found


def _task_score(result: Result, split: str, selection: str = "held_out") -> Mapping[str, Any]:
  """A run's score on a split, at the step that a way to select has chosen."""
  return result.scores[selection][split]["tasks"][result.tags["task"]]


def _selection(result: Result) -> float:
  return _task_score(result, "held_out")["score"]


def _accuracy(result: Result, selection: str = "held_out") -> float:
  return _task_score(result, "validation", selection)["score"]


def _row(result: Result) -> dict[str, Any]:
  """What the results file says of a chosen run."""
  row = {name: result.tags[name] for name in ("task", "arm", "seed", "rate")}
  for selection in ("held_out", "published"):
    score = _task_score(result, "validation", selection)
    row[selection] = {name: score[name] for name in ("metric", "score", "interval", "n", "majority")}
    row[selection]["step"] = result.scores[selection]["step"]
  return row


def _validation_losses(results: Sequence[Result]) -> dict[str, list[float]]:
  """The loss of pretraining by arm, a number per seed."""
  losses: dict[str, list[float]] = {}
  for result in sorted(results, key=lambda result: result.tags["seed"]):
    losses.setdefault(result.tags["arm"], []).append(result.validation["loss"])
  return losses


def _lines_of_means(scores: Mapping[str, Mapping[str, Sequence[float]]], majority: Mapping[str, float]) -> list[str]:
  """A row per task: the majority class, our means over seeds, the published accuracies; and the means over tasks."""
  arms = [arm for arm in (*BUDGETS["cpu"].arms, PRETRAINED) if arm in scores]
  tasks = [task for task in TASKS if all(task in scores[arm] for arm in arms)]
  heads = ["", "majority", *arms, *(f"{arm}, published" for arm in PUBLISHED)]
  rows = []
  for task in tasks:
    ours = [_percent(np.mean(scores[arm][task])) for arm in arms]
    rows.append([task, _percent(majority[task]), *ours, *(f"{PUBLISHED[arm][task]:.1f}" for arm in PUBLISHED)])
  ours = [_percent(np.mean([np.mean(scores[arm][task]) for task in tasks])) for arm in arms]
  theirs = [f"{np.mean([PUBLISHED[arm][task] for task in tasks]):.1f}" for arm in PUBLISHED]
  rows.append(["mean", _percent(np.mean([majority[task] for task in tasks])), *ours, *theirs])
  return markdown_table(heads, rows)


def _sentence(contrast: Mapping[str, Any]) -> str:
  """The verdict on one contrast, from its numbers."""
  p = f", {contrast['holm']:.2f} by Holm" if "holm" in contrast else ""
  return (
    f"{contrast['arm']} against {contrast['baseline']}: {contrast['verdict']}. {_number(contrast)};"
    f" {contrast['wins']} wins, {contrast['losses']} losses (sign test p = {contrast['sign_test_p']:.2f}{p})."
  )


def _number(contrast: Mapping[str, Any]) -> str:
  low, high = (100 * bound for bound in contrast["interval"])
  return f"{100 * contrast['mean']:+.1f} points in the mean of {contrast['tasks']} tasks, [{low:+.1f}, {high:+.1f}]"


def _percent(fraction: float | np.floating) -> str:
  return f"{100 * fraction:.1f}"
