"""Studies of language models that differ in their experts alone: the same start, the same data, the same tuning."""

import dataclasses
import functools
import glob
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from scipy import stats

from moe.config import build, override, require
from moe.data import DataConfig
from moe.data.formats.tokenizing import tokenize
from moe.markdown import markdown_table
from moe.studies import statistics
from moe.studies.arms import Arm, given_arm
from moe.studies.flops import step_flops
from moe.studies.repository import repository_config
from moe.studies.settings import Budget, Setting
from moe.studies.study import Inputs, Job, Result, Study
from moe.training.experiment import load_config

TUNING = "tuning"  # in place of a seed's number
_TUNING_SEED = 1000  # no other run has it
_DENSE = "dense"
_TOLERANCE = 0.02  # of FLOPs per step that count as equal


@dataclasses.dataclass(frozen=True)
class Contrast:
  """What is asked of two arms.

  Attributes:
    arm, baseline: their names.
    measure: "loss": by how many nats per token the arm is better; "steps", "flops": how many times fewer the arm needs
      to reach the baseline's final loss.
    more_than: what is claimed of this number. A loss has to differ by more than 0.005 to count.
    rule: the rule that the arm's router is judged by at the end: its "own", or its "causal" twin's. Only for "loss".
  """

  arm: str
  baseline: str
  measure: Literal["loss", "steps", "flops"] = "loss"
  more_than: float = 0.005
  rule: Literal["own", "causal"] = "own"


class LanguageModels(Study):
  """Base of these studies: a file of `claims` says which arms there are, and what is asked of them.

  Learning rates are chosen for every arm from the same grid, by shorter runs with a seed of their own. The primary
  contrast is the first one; the p values of the others are corrected by Holm. Before any of them the regime is tested:
  unless `control`, a published baseline, beats the dense model of equal FLOPs, nothing that is said of sparse models
  here says much of others.

  Attributes:
    setting: what all arms have in common.
    arms: names in `moe.studies.arms.ARMS`, in the order of tables, or arms of the study's own.
    contrasts: the first is primary.
    control: the sparse arm that must beat the dense one; empty if the study has no dense arm.
  """

  setting: ClassVar[Setting]
  arms: ClassVar[Mapping[str, Arm]]
  contrasts: ClassVar[Sequence[Contrast]]
  control: ClassVar[str] = ""
  budgets = ("smoke", "cpu", "gpu", "paper")
  planned = ("paper",)

  @property
  def runs(self) -> str:
    return self.setting.name

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan, arms = self.setting.budgets[budget], self.all_arms(budget, inputs)
    tuning = [self._job(budget, inputs, name, arms[name], rate, None) for rate in plan.rates for name in arms]
    if len(plan.rates) == 1:
      tuning = []  # there is nothing to choose
    rates = self.rates(budget, results) if tuning else dict.fromkeys(arms, plan.rates[0])
    compared = [
      self._job(budget, inputs, name, arms[name], rates[name], seed)
      for seed in range(plan.seeds)
      for name in arms
      if name in rates
    ]
    return tuning + compared

  def all_arms(self, budget: str, inputs: Inputs) -> dict[str, Arm]:
    """The study's arms, and those that were given; of the smoke budget, those of its first answers."""
    given = {name: given_arm(name, values) for name, values in inputs.arms.items()}
    for name in given:
      require(name not in self.arms, "--arm", name, "expected a name that no arm of the study has")
    first = {_DENSE, self.control, self.contrasts[0].arm, self.contrasts[0].baseline}
    own = {name: arm for name, arm in self.arms.items() if budget != "smoke" or name in first}
    return {**own, **given}

  def rates(self, budget: str, results: Sequence[Result]) -> dict[str, float]:
    """The learning rate of each arm whose tuning is finished: of the lowest final loss."""
    losses: dict[str, dict[float, float]] = {}
    for one in results:
      if one.tags["seed"] == TUNING:
        losses.setdefault(one.tags["arm"], {})[one.tags["rate"]] = one.validation["loss"]
    grid = self.setting.budgets[budget].rates
    return {arm: min(grid, key=found.__getitem__) for arm, found in losses.items() if len(found) == len(grid)}

  def check_inputs(self, inputs: Inputs, jobs: Sequence[Job]) -> None:
    found = os.path.isdir(inputs.text) or glob.glob(inputs.text, recursive=True)
    require(bool(inputs.text and found), "--text", inputs.text, "expected a glob of text files, or a token directory")

  def prepare(self, inputs: Inputs) -> None:
    config = repository_config(self.setting.config)["data"]
    source = {"name": "text", "path": inputs.text}
    if not os.path.isdir(inputs.tokens):
      tokenize(build(DataConfig, config | {"source": source}), pathlib.Path(inputs.tokens))

  def _job(self, budget: str, inputs: Inputs, name: str, arm: Arm, rate: float, seed: int | None) -> Job:
    plan = self.setting.budgets[budget]
    tree = arm.tree(self.setting, plan)
    steps = round(matched_steps(self.setting, plan, name, arm) * (plan.tuning if seed is None else 1))
    run_seed = _TUNING_SEED if seed is None else seed
    fields = {
      "seed": run_seed,
      "data.seed": run_seed,
      "data.source": {"name": "tokens", "path": inputs.tokens},
      "data.vocabulary": "",
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
    )

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    compared = [one for one in results if one.tags["seed"] != TUNING]
    runs = {arm: _by_seed(compared, arm) for arm in dict.fromkeys(one.tags["arm"] for one in compared)}
    contrasts = [found for one in self.contrasts if (found := _answer(one, runs)) is not None]
    p = statistics.holm([one["p"] for one in contrasts[1:]])
    for one, corrected in zip(contrasts[1:], p):
      one["holm"] = corrected
    control = _answer(Contrast(self.control, _DENSE), runs) if self.control else None
    return {
      "setting": self.setting.name,
      "rates": self.rates(budget, results),
      "tuning": _tuning(results),
      "arms": {arm: _summary(list(found.values())) for arm, found in runs.items()},
      "control": control,
      "contrasts": contrasts,
    }

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    control = analysis["control"]
    return [
      *_table(analysis["arms"]),
      "",
      *([f"Does this regime count? {sentence(control)}"] if control else []),
      *map(sentence, analysis["contrasts"]),
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
  """The config as JSON, with any tokens: no FLOP depends on them."""
  return json.dumps(override(tree, {"data.source": {"name": "tokens", "path": "tokens"}}.items()), sort_keys=True)


def _by_seed(results: Sequence[Result], arm: str) -> dict[int, Result]:
  found = {one.tags["seed"]: one for one in results if one.tags["arm"] == arm}
  return dict(sorted(found.items()))


def _answer(contrast: Contrast, runs: Mapping[str, Mapping[int, Result]]) -> dict[str, Any] | None:
  """What the seeds that both arms have say; None if they have none."""
  ours, theirs = runs.get(contrast.arm, {}), runs.get(contrast.baseline, {})
  seeds = [seed for seed in ours if seed in theirs]
  if not seeds:
    return None
  pairs = [(ours[seed], theirs[seed]) for seed in seeds]
  return dataclasses.asdict(contrast) | {"seeds": seeds} | _MEASURES[contrast.measure](contrast, pairs)


def _difference(contrast: Contrast, pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
  """By how many nats per token the arm is better, on the same blocks of the validation split."""
  ours, theirs = (np.array([_blocks(pair[side], contrast.rule) for pair in pairs]) for side in (0, 1))  # [S, B]
  found = statistics.paired_difference(ours.mean(1), theirs.mean(1))
  bootstrap = statistics.hierarchical_interval(theirs - ours)
  return {
    "value": found.mean,
    "interval": [found.low, found.high],
    "bootstrap": [bootstrap.low, bootstrap.high],
    "p": found.p,
    "values": (theirs - ours).mean(1).tolist(),
    "diverged": found.diverged,
    "verdict": _difference_verdict(found.low, found.high, found.mean, contrast.more_than),
  }


def _difference_verdict(low: float, high: float, mean: float, least: float) -> str:
  """Of the claim that the arm is better: by an interval without 0, and by more than `least`, which is worth a word."""
  if low > 0 and mean > least:
    return "held"
  return "did not hold" if high < least else "not resolved"


def _speedup(contrast: Contrast, pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
  """How many times fewer steps, or FLOPs, the arm needs to reach the baseline's final loss."""
  (losses, x), (other_losses, other_x) = (_curves([pair[side] for pair in pairs], contrast.measure) for side in (0, 1))
  found = statistics.speedup(losses, other_losses, x, other_x)
  return {
    "value": found.estimate,
    "interval": [found.low, found.high],
    "p": _speedup_p(found.ratios, contrast.more_than),
    "values": found.ratios,
    "censored": found.censored,
    "diverged": found.diverged,
    "verdict": statistics.verdict(found.low, found.high, contrast.more_than),
  }


def _speedup_p(ratios: Sequence[float], more_than: float) -> float:
  """Two-sided, of a typical ratio of `more_than`: by the t test of logarithms, or the sign test if one is censored."""
  if len(ratios) == 1:
    return math.nan
  if all(ratios):
    return float(stats.ttest_1samp(np.log(ratios), math.log(more_than)).pvalue)
  return float(stats.quantile_test(ratios, q=more_than, p=0.5).pvalue)


_MEASURES = {"loss": _difference, "steps": _speedup, "flops": _speedup}


def _blocks(result: Result, rule: str) -> Sequence[float]:
  return result.blocks.get(rule, result.blocks["own"])


def _curves(results: Sequence[Result], measure: str) -> tuple[np.ndarray, np.ndarray]:
  """The losses `[S, V]` of validations, and the steps or FLOPs `[S, V]` before each."""
  losses = np.array([[point["loss"] for point in one.curve] for one in results])
  steps = np.array([[point["step"] for point in one.curve] for one in results])
  per_step = np.array([[one.flops / one.step] for one in results])
  return losses, steps * (per_step if measure == "flops" else 1)


def _tuning(results: Sequence[Result]) -> dict[str, dict[str, float]]:
  """The losses of the whole grid, by arm and rate."""
  found: dict[str, dict[str, float]] = {}
  for one in results:
    if one.tags["seed"] == TUNING:
      found.setdefault(one.tags["arm"], {})[f"{one.tags['rate']:g}"] = one.validation["loss"]
  return found


def _summary(results: Sequence[Result]) -> dict[str, Any]:
  """What the table says of an arm."""
  losses = {rule: [float(np.mean(_blocks(one, rule))) for one in results] for rule in results[0].blocks}
  last = results[0].curve[-1]
  return {
    "rate": results[0].tags["rate"],
    "seeds": len(results),
    "parameters": results[0].parameters,
    "steps": results[0].step,
    "flops": float(np.mean([one.flops for one in results])),
    "losses": losses,
    "gate_entropy": last.get("gate_entropy"),
    "load_max": last.get("load_max"),
  }


def _table(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A row per arm, the best first."""
  heads = ["", "loss", "sd", "causal twin", "learning rate", "parameters", "steps", "PFLOP", "gate entropy", "load"]
  rows = []
  for name, arm in sorted(arms.items(), key=lambda item: np.mean(item[1]["losses"]["own"])):
    losses, twin = arm["losses"]["own"], arm["losses"].get("causal")
    rows.append(
      [
        name,
        f"{np.mean(losses):.4f}",
        f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else "",
        f"{np.mean(twin):.4f}" if twin else "",
        f"{arm['rate']:g}",
        f"{arm['parameters'] / 1e6:.2f}M",
        f"{arm['steps']:,}",
        f"{arm['flops'] / 1e15:.3f}",
        *(f"{arm[field]:.2f}" if arm[field] is not None else "" for field in ("gate_entropy", "load_max")),
      ]
    )
  return markdown_table(heads, rows) if rows else []


def sentence(answer: Mapping[str, Any]) -> str:
  """The verdict on one contrast, from its numbers."""
  arm, baseline, value = answer["arm"], answer["baseline"], answer["value"]
  interval = "no interval" if not np.all(np.isfinite(answer["interval"])) else _interval(answer)
  seeds = f"{len(answer['seeds'])} seed{'s' * (len(answer['seeds']) > 1)}"
  holm = f", p = {answer['holm']:.2g} by Holm" if "holm" in answer else ""
  if answer["measure"] == "loss":
    twin = " under its causal twin" if answer["rule"] == "causal" else ""
    return (
      f"{arm}{twin} is better than {baseline}: {answer['verdict']}."
      f" {value:+.4f} nats per token, {interval} ({seeds}{holm})."
    )
  what = {"steps": "steps", "flops": "FLOPs"}[answer["measure"]]
  missed = f"; {answer['censored']} never reach it" if answer["censored"] else ""
  return (
    f"{arm} needs more than {answer['more_than']:g} times fewer {what} than {baseline} for its final loss:"
    f" {answer['verdict']}. {value:.2f} times, {interval} ({seeds}{missed}{holm})."
  )


def _interval(answer: Mapping[str, Any]) -> str:
  form = "+.4f" if answer["measure"] == "loss" else ".2f"
  return "[" + ", ".join(format(bound, form) for bound in answer["interval"]) + "]"
