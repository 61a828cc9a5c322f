"""Studies of language models that differ in their experts alone: the same start, the same data, the same tuning."""

import functools
import glob
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from moe.config import build, override, require
from moe.data import DataConfig
from moe.data.formats.tokenizing import tokenize
from moe.markdown import markdown_table
from moe.studies.arms import Arm, given_arm
from moe.studies.contrasts import Contrast, answer_to, block_losses, by_seed, corrected, headline, sentence
from moe.studies.flops import step_flops
from moe.studies.reporting import figure
from moe.studies.repository import repository_config
from moe.studies.settings import Budget, Setting, best_rates, tried_rates
from moe.studies.study import Headline, Inputs, Job, Result, Study
from moe.training.experiment import load_config

TUNING = "tuning"  # in place of a seed's number
_TUNING_SEED = 1000  # no other run has it
_DENSE = "dense"
_MEASURING = 0.05  # of the time that the run has taken, about
_TOLERANCE = 0.02  # of FLOPs per step that count as equal


class LanguageModels(Study):
  """Base of these studies: a file of `claims` says which arms there are, and what is asked of them.

  Learning rates are chosen for every arm from the same grid, by runs with a seed of their own, and by the same rule
  beyond it (`tried_rates`). The primary contrast is the first one; the p values of the others are corrected by Holm.
  Before any of them the regime is tested: unless `control`, a published baseline, beats the dense model of equal FLOPs,
  nothing that is said of sparse models here says much of others.

  Attributes:
    setting: what all arms have in common.
    arms: names in `moe.studies.arms.ARMS`, in the order of tables, or arms of the study's own.
    contrasts: the first is primary; without any, the first of the findings.
    control: the sparse arm that must beat the dense one; empty if the study has no dense arm.
    loss_of: what a loss is the mean over.
  """

  setting: ClassVar[Setting]
  arms: ClassVar[Mapping[str, Arm]]
  contrasts: ClassVar[Sequence[Contrast]]
  control: ClassVar[str] = ""
  loss_of: ClassVar[str] = "token"
  takes_arms = True
  budgets = ("smoke", "cpu", "gpu", "paper")
  planned = ("paper",)

  @property
  def runs(self) -> str:
    return self.setting.name

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan, arms = self.setting.budgets[budget], self.all_arms(budget, inputs, results)
    if len(plan.rates) > 1:
      tried, rates = _tried(results), self.rates(budget, results)
      grids = [(name, rate) for name in arms for rate in tried_rates(plan.rates, tried.get(name, {}))]
    else:  # there is nothing to choose
      rates, grids = dict.fromkeys(arms, plan.rates[0]), []
    tuning = [self._job(budget, inputs, name, arms[name], rate, None) for name, rate in grids]
    compared = [
      self._job(budget, inputs, name, arms[name], rates[name], seed)
      for seed in range(plan.seeds)
      for name in arms
      if name in rates
    ]
    return tuning + compared + self.measurements(budget, compared)

  def all_arms(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> dict[str, Arm]:
    """The study's arms, and those that were given; of the smoke budget, those of its first answers."""
    given = {name: given_arm(name, values) for name, values in inputs.arms.items()}
    beside = [one for one in Study.choices.values() if issubclass(one, LanguageModels) and one.setting == self.setting]
    taken = {name: other.name for other in beside for name in other.arm_names()}
    for name in given:
      require(name not in taken, "--arm", name, f"expected a name that no arm has, as one of {taken.get(name)}")
    first = {_DENSE, self.control, *(name for one in self.contrasts[:1] for name in (one.arm, one.baseline))}
    small = budget == "smoke" and bool(self.contrasts)
    own = {name: arm for name, arm in self.arms.items() if not small or name in first}
    return {**own, **given}

  @classmethod
  def arm_names(cls) -> set[str]:
    """Of all arms that it may have without `--arm`: studies of a setting share a folder for each name."""
    return set(cls.arms)

  def measurements(self, budget: str, runs: Sequence[Job]) -> list[Job]:
    """What is measured of the runs that are compared, once they are finished; nothing unless the study says so."""
    return []

  def measurement(self, run: Job, **tags: Any) -> Job:
    """A measurement of a run by this study, with the run's tags and these."""
    name, both = f"measures/{self.name}/{run.name}", dict(run.tags) | tags
    return Job(name, {}, source=run.name, tags=both, weight=_MEASURING * run.weight, measure=self.name)

  def findings(self, measured: Sequence[Result]) -> list[dict[str, Any]]:
    """What the measurements say, as `moe.studies.contrasts.finding`."""
    return []

  def rates(self, budget: str, results: Sequence[Result]) -> dict[str, float]:
    """The learning rate of each arm whose tuning is finished: of the lowest final loss."""
    return best_rates(self.setting.budgets[budget].rates, _tried(results))

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    found = os.path.isdir(inputs.text) or glob.glob(inputs.text, recursive=True)
    wanted = "expected a glob that matches text files, or a token directory"
    require(bool(inputs.text and found), "--text", inputs.text, wanted)

  def data_fields(self, inputs: Inputs) -> dict[str, Any]:
    """The fields that say where the runs read."""
    return {"data.source": {"name": "tokens", "path": inputs.tokens}, "data.vocabulary": ""}

  def prepare(self, inputs: Inputs) -> None:
    config = repository_config(self.setting.config)["data"]
    source = {"name": "text", "path": inputs.text}
    if not os.path.isdir(inputs.tokens):
      tokenize(build(DataConfig, config | {"source": source}), pathlib.Path(inputs.tokens))

  def _job(self, budget: str, inputs: Inputs, name: str, arm: Arm, rate: float, seed: int | None) -> Job:
    plan = self.setting.budgets[budget]
    tree = arm.tree(self.setting, plan)
    steps = matched_steps(self.setting, plan, name, arm)
    run_seed = _TUNING_SEED if seed is None else seed
    fields = {
      "seed": run_seed,
      "data.seed": run_seed,
      **self.data_fields(inputs),
      "optimizer.learning_rate": rate,
      "train.steps": steps,
    }
    if seed is None:
      fields["train.eval_every"] = steps
    label = TUNING if seed is None else f"seed-{seed}"
    return Job(
      f"{name}/rate-{rate:g}/{label}",
      override(tree, fields.items()),
      tags={"arm": name, "rate": rate, "seed": TUNING if seed is None else seed},
      weight=steps,
      blocks=0 if seed is None else plan.blocks,
      may_diverge=True,
    )

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    compared = [one for one in results if one.tags["seed"] != TUNING and not one.is_measurement]
    runs = {arm: by_seed(compared, arm) for arm in dict.fromkeys(one.tags["arm"] for one in compared)}
    answers = [found for one in self.contrasts if (found := answer_to(one, runs)) is not None]
    findings = self.findings([one for one in results if one.is_measurement])
    control = answer_to(Contrast(self.control, _DENSE), runs) if self.control else None
    return {
      "setting": self.setting.name,
      "rates": self.rates(budget, results),
      "tuning": {arm: {f"{rate:g}": loss for rate, loss in tried.items()} for arm, tried in _tried(results).items()},
      "arms": {arm: _summary(list(found.values())) for arm, found in runs.items()},
      "control": control,
      "contrasts": corrected([*answers, *findings]),
    }

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    return headline(analysis["contrasts"], analysis["control"], self.loss_of)

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    return figure.draw_arms(analysis, path, self.loss_of)

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    control = analysis["control"]
    return [
      *_table(analysis["arms"]),
      "",
      *([f"Does this regime count? {sentence(control, self.loss_of)}"] if control else []),
      *(sentence(one, self.loss_of) for one in analysis["contrasts"]),
    ]


@functools.cache
def _step_flops(tree: str, per_token: float) -> float:
  """Of the config in this JSON, if dropless experts have so many assignments per token in each layer."""
  config = load_config(json.loads(tree))
  found, data = step_flops(config, forward=True), config.data
  lengths = config.model.stack_lengths(data.inputs_length, data.targets_length)
  each = {stack: data.batch_size * lengths[stack] * per_token for stack in found.dropless}
  return found.of({stack: of.layers * each[stack] for stack, of in found.dropless.items()})


def matched_steps(setting: Setting, plan: Budget, name: str, arm: Arm) -> int:
  """Steps whose measured FLOPs are those of the dense arm's steps; its steps themselves if a step's FLOPs are its own.

  Raises:
    ConfigError: they differ by more than 2%, and the arm does not say `match = "total"`.
  """
  dense, tree = Arm(router=None).tree(setting, plan), arm.tree(setting, plan)
  steps = dense["train"]["steps"]
  ours, theirs = (_step_flops(_measured(one), arm.parts - arm.shared) for one in (tree, dense))
  if arm.match == "steps" or abs(ours / theirs - 1) <= _TOLERANCE:
    return steps
  wanted = f'expected {theirs:.4g}, the dense arm\'s, to 2%; match = "total" trains fewer steps of more FLOPs'
  require(arm.match == "total", f"arm {name}: FLOPs of a step", f"{ours:.4g}", wanted)
  return round(steps * theirs / ours)


def _measured(tree: Mapping[str, Any]) -> str:
  """The config as JSON, with any tokens in place of a text: no FLOP depends on them."""
  tokens = {"data.source": {"name": "tokens", "path": "tokens"}} if tree["data"]["source"]["name"] == "text" else {}
  return json.dumps(override(tree, tokens.items()), sort_keys=True)


def _tried(results: Sequence[Result]) -> dict[str, dict[float, float]]:
  """The losses of the grid, as far as it has been tried, by arm and rate."""
  found: dict[str, dict[float, float]] = {}
  for one in results:
    if one.tags["seed"] == TUNING:
      found.setdefault(one.tags["arm"], {})[one.tags["rate"]] = one.validation["loss"]
  return found


def _summary(results: Sequence[Result]) -> dict[str, Any]:
  """What the table says of an arm."""
  losses = {rule: [float(np.mean(block_losses(one, rule))) for one in results] for rule in results[0].blocks}
  longest = max(results, key=lambda one: one.step)  # others have diverged
  last = longest.curve[-1]
  return {
    "rate": results[0].tags["rate"],
    "seeds": len(results),
    "parameters": results[0].parameters,
    "steps": longest.step,
    "flops": float(np.mean([one.flops for one in results])),
    "losses": losses,
    "gate_entropy": last.get("gate_entropy"),
    "load_max": last.get("load_max"),
  }


def _table(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A row per arm, the best first, those that diverged last."""
  heads = ["", "loss", "sd", "causal twin", "learning rate", "parameters", "steps", "TFLOP", "gate entropy", "load"]
  losses = {name: {rule: np.array(found, float) for rule, found in arm["losses"].items()} for name, arm in arms.items()}
  rows = []
  for name in sorted(arms, key=lambda name: np.nan_to_num(losses[name]["own"].mean(), nan=np.inf)):
    arm, own, twin = arms[name], losses[name]["own"], losses[name].get("causal")
    rows.append(
      [
        name,
        f"{own.mean():.4f}",
        f"{own.std(ddof=1):.4f}" if len(own) > 1 else "",
        f"{twin.mean():.4f}" if twin is not None else "",
        f"{arm['rate']:g}",
        f"{arm['parameters'] / 1e6:.2f}M",
        f"{arm['steps']:,}",
        f"{arm['flops'] / 1e12:.3g}",
        *(f"{arm[field]:.2f}" if arm[field] is not None else "" for field in ("gate_entropy", "load_max")),
      ]
    )
  return markdown_table(heads, rows) if rows else []
