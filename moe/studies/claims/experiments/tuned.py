"""Studies of small experiments: every arm tuned from the same grid, all seeds and rates of a job trained at once."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from moe.markdown import markdown_table
from moe.studies.contrasts import corrected, finding, headline, sentence
from moe.studies.reporting import figure
from moe.studies.settings import best_rates, tried_rates
from moe.studies.study import Headline, Inputs, Job, Result, Study

_TUNING, _COMPARED = "tuning", "compared"  # what a job is for
_FIRST_TUNING_SEED = 1000  # no other seed is as high


@dataclasses.dataclass(frozen=True)
class Plan:
  """One budget.

  Attributes:
    rates: the grid of learning rates that every arm begins with.
    tuning: number of seeds that choose an arm's rate; none of them is compared.
    seeds: number of those that are compared.
    sizes: all else that an experiment is told.
  """

  rates: Sequence[float]
  tuning: int
  seeds: int
  sizes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked of two arms: whether a number is higher for the one than for the other, seed by seed.

  Attributes:
    claim: a clause.
    measure: name of the number.
    arm, baseline: the one with the higher number, and the other.
    more_than: the least mean difference that is worth a word.
    either_way: the claim is that they differ so much, whichever has more.
  """

  claim: str
  measure: str
  arm: str
  baseline: str
  more_than: float
  either_way: bool = False


def runs_of(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """The rate and the seed of each run of an experiment: every seed at every rate, `[runs]` both."""
  rates, seeds = np.meshgrid(np.array(config["rates"], np.float32), config["seeds"], indexing="ij")
  return rates.ravel(), seeds.ravel()


def by_rate(config: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
  """What was found of the runs, a number of each by name, as lists `[rates, seeds]`."""
  shape = len(config["rates"]), len(config["seeds"])
  return {name: np.reshape(values, shape).tolist() for name, values in found.items()}


class TunedExperiments(Study):
  """Base of these studies. An arm's first job tries all rates of the grid, its last has the seeds that are compared.

  Between them, one job for each rate beyond the grid that `moe.studies.settings.tried_rates` asks for.

  An experiment's config has the arm's fields, the plan's sizes, and lists of `rates` and `seeds`. It returns lists
  `[rates, seeds]`: the loss that chooses the rate by its mean over seeds, and the measures.

  Attributes:
    plans: by budget.
    arms: for each its fields of the config.
    chosen_by: name of the loss that chooses an arm's rate.
    measures: names of what is measured, with their headings in the table.
    asked: the first is primary; the p values of the others are corrected by Holm.
  """

  plans: ClassVar[Mapping[str, Plan]]
  arms: ClassVar[Mapping[str, Mapping[str, Any]]]
  chosen_by: ClassVar[str] = "loss"
  measures: ClassVar[Mapping[str, str]]
  asked: ClassVar[Sequence[Asked]]
  budgets: ClassVar[tuple[str, ...]] = ("smoke", "cpu")
  reads: ClassVar[tuple[str, ...]] = ()

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan = self.plans[budget]
    tuning = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + plan.tuning)
    tried = self._tried(results)
    rates = best_rates(plan.rates, tried)
    further = {
      arm: [rate for rate in tried_rates(plan.rates, losses) if rate not in plan.rates] for arm, losses in tried.items()
    }
    return [
      *(self._job(plan, inputs, arm, _TUNING, plan.rates, tuning) for arm in self.arms),
      *(self._job(plan, inputs, arm, _TUNING, [rate], tuning) for arm in further for rate in further[arm]),
      *(self._job(plan, inputs, arm, _COMPARED, [rates[arm]], range(plan.seeds)) for arm in rates),
    ]

  def _job(self, plan: Plan, inputs: Inputs, arm: str, use: str, rates: Sequence[float], seeds: Sequence[int]) -> Job:
    config = {**plan.sizes, **self.arms[arm], **self.data_fields(inputs), "rates": list(rates), "seeds": list(seeds)}
    beyond = use == _TUNING and list(rates) != list(plan.rates)
    name, weight = f"{arm}/{use}" + (f"/rate-{rates[0]:g}" if beyond else ""), float(len(rates) * len(seeds))
    return Job(name, config, tags={"arm": arm, "use": use}, weight=weight, measure=self.name)

  def data_fields(self, inputs: Inputs) -> dict[str, Any]:
    """The fields that say where an experiment reads."""
    return {}

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    """An experiment reads nothing, unless the study says so."""

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    tried = self._tried(results)
    compared = {one.tags["arm"]: one for one in results if one.tags["use"] == _COMPARED}
    found = {
      arm: {name: np.array(one.measured[name], float)[0] for name in self.measures} for arm, one in compared.items()
    }
    answers = []
    for one in self.asked:
      if one.arm in found and one.baseline in found:
        differences = found[one.arm][one.measure] - found[one.baseline][one.measure]
        by_seed = dict(zip(compared[one.arm].config["seeds"], differences.tolist()))
        answers.append(finding(one.claim, by_seed, one.more_than, either_way=one.either_way))
    arms = {
      arm: {"rate": compared[arm].config["rates"][0], **{name: values.tolist() for name, values in of.items()}}
      for arm, of in found.items()
    }
    tuning = {
      arm: {"rate": rate, "losses": {str(each): tried[arm][each] for each in sorted(tried[arm])}}
      for arm, rate in best_rates(self.plans[budget].rates, tried).items()
    }
    return {"tuning": tuning, "arms": arms, "contrasts": corrected(answers)}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, found in analysis["arms"].items():
      values = [np.array(found[name], float) for name in self.measures]
      spread = [f"{one.mean():.4g} ± {one.std(ddof=1):.2g}" if len(one) > 1 else f"{one.mean():.4g}" for one in values]
      rows.append([arm, f"{found['rate']:g}", *spread])
    table = markdown_table(["mean ± sd over seeds", "learning rate", *self.measures.values()], rows) if rows else []
    return [*table, "", *map(sentence, analysis["contrasts"])]

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    return headline(analysis["contrasts"], None)

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    return figure.draw_measures(analysis, self.measures, path)

  def _tried(self, results: Sequence[Result]) -> dict[str, dict[float, float]]:
    """The mean losses of the tuning seeds, by arm and rate; infinite where one diverged."""
    found: dict[str, dict[float, float]] = {}
    for one in results:
      if one.tags["use"] == _TUNING:
        losses = np.array(one.measured[self.chosen_by], float).mean(1)
        found.setdefault(one.tags["arm"], {}).update(
          zip(one.config["rates"], np.nan_to_num(losses, nan=np.inf).tolist())
        )
    return found
