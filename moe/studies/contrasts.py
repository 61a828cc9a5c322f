"""What a study asks of its arms, the answers of the results, and the sentences that say them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from moe.studies import statistics
from moe.studies.study import Headline, Result

Rule = Literal["own", "causal"]
_WORTH_A_WORD = 0.005  # nats per token
_SOUGHT = 0.01  # nats per token that an unresolved contrast says how many seeds it takes to find
_SIGNIFICANT = 0.05
_NOTED = 0.02  # difference in FLOPs that a sentence mentions
_SIDES = (("arm", "rule"), ("baseline", "baseline_rule"))


@dataclasses.dataclass(frozen=True)
class Contrast:
  """What is asked of two arms.

  Attributes:
    arm, baseline: their names.
    measure: "loss": by how many nats per token the arm is better; "steps", "flops": how many times fewer the arm needs
      to reach the baseline's final loss.
    more_than: what is claimed of this number. A loss has to differ by more than 0.005 to count.
    rule: the rule that the arm's router is judged by at the end: its "own", or its "causal" twin's, which is its own if
      that is causal. Only for "loss".
    baseline_rule: that of the baseline; the same if it is not given.
  """

  arm: str
  baseline: str
  measure: Literal["loss", "steps", "flops"] = "loss"
  more_than: float = _WORTH_A_WORD
  rule: Rule = "own"
  baseline_rule: Rule | None = None


def by_seed(results: Sequence[Result], arm: str) -> dict[int, Result]:
  """The runs of an arm."""
  found = {one.tags["seed"]: one for one in results if one.tags["arm"] == arm}
  return dict(sorted(found.items()))


def answer_to(contrast: Contrast, runs: Mapping[str, Mapping[int, Result]]) -> dict[str, Any] | None:
  """What the seeds that both arms have say; None if they have none."""
  ours, theirs = runs.get(contrast.arm, {}), runs.get(contrast.baseline, {})
  seeds = [seed for seed in ours if seed in theirs]
  if not seeds:
    return None
  pairs = [(ours[seed], theirs[seed]) for seed in seeds]
  about = dataclasses.asdict(contrast) | {"seeds": seeds, "flops": _flops_ratio(pairs)}
  return about | _MEASURES[contrast.measure](contrast, pairs)


def _flops_ratio(pairs: Sequence[tuple[Result, Result]]) -> float:
  """The arm's measured FLOPs over the baseline's: how many experts some routers use is not known before."""
  ours, theirs = (sum(pair[side].flops for pair in pairs) for side in (0, 1))
  return ours / theirs if theirs else math.nan


def _difference(contrast: Contrast, pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
  """By how many nats per token the arm is better, on the same blocks of the validation split."""
  rules = contrast.rule, contrast.baseline_rule or contrast.rule
  ours, theirs = (np.array([block_losses(pair[side], rules[side]) for pair in pairs]) for side in (0, 1))  # [S, B]
  found = statistics.paired_difference(ours.mean(1), theirs.mean(1))
  bootstrap = statistics.hierarchical_interval(theirs - ours)
  has_twin = ["causal" in one.blocks for one in pairs[0]]
  judged = ["causal" if twin and rule == "causal" else "own" for twin, rule in zip(has_twin, rules)]
  return {
    "rule": judged[0],
    "baseline_rule": judged[1],
    "value": found.mean,
    "interval": [found.low, found.high],
    "bootstrap": [bootstrap.low, bootstrap.high],
    "p": found.p,
    "values": (theirs - ours).mean(1).tolist(),
    "diverged": found.diverged,
    "needs": _seeds_needed((theirs - ours).mean(1)),
    "verdict": _difference_verdict(found.low, found.high, found.mean, contrast.more_than),
  }


def _seeds_needed(differences: np.ndarray) -> int | None:
  """How many seeds find a difference of `_SOUGHT` four times of five, by the spread of these; None if it has none."""
  if len(differences) < 2 or not np.all(np.isfinite(differences)):
    return None
  return statistics.required_seeds(float(differences.std(ddof=1)), _SOUGHT)


def _difference_verdict(low: float, high: float, mean: float, least: float) -> str:
  """Of the claim that the arm is better: by an interval without 0, and by more than `least`, which is worth a word."""
  if low > 0 and mean > least:
    return "held"
  return "did not hold" if high < least else "not resolved"


def _either_verdict(low: float, high: float, mean: float, least: float) -> str:
  """Of the claim that a number is further from 0 than `least`, on either side."""
  if (low > 0 or high < 0) and abs(mean) > least:
    return "held"
  return "did not hold" if -least < low and high < least else "not resolved"


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


def block_losses(result: Result, rule: str) -> Sequence[float]:
  """Of its blocks of the validation split; a router without a twin is judged by its own rule."""
  return result.blocks.get(rule, result.blocks["own"])


def _curves(results: Sequence[Result], measure: str) -> tuple[np.ndarray, np.ndarray]:
  """The losses `[S, V]` of validations, and the steps or FLOPs `[S, V]` before each."""
  losses = np.array([[point["loss"] for point in one.curve] for one in results])
  steps = np.array([[point["step"] for point in one.curve] for one in results])
  per_step = np.array([[one.flops / max(one.step, 1)] for one in results])
  return losses, steps * (per_step if measure == "flops" else 1)


def finding(claim: str, values: Mapping[int, float], more_than: float, *, either_way: bool = False) -> dict[str, Any]:
  """What measurements of several seeds say about a claim, in the form of an answer.

  Args:
    claim: a clause.
    values: by seed.
    more_than: the claim is that their mean is above 0, and by more than this, which is worth a word.
    either_way: the claim is that it is so far from 0, above or below.
  """
  numbers = np.array(list(values.values()))
  found = statistics.paired_difference(np.zeros(len(numbers)), numbers)
  judge = _either_verdict if either_way else _difference_verdict
  return {
    "claim": claim,
    "measure": "finding",
    "more_than": more_than,
    "seeds": list(values),
    "value": found.mean,
    "interval": [found.low, found.high],
    "p": found.p,
    "values": numbers.tolist(),
    "verdict": judge(found.low, found.high, found.mean, more_than),
  }


def corrected(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The answers, of which the first is primary; of the others only those hold whose p is at most 5% after Holm."""
  later = statistics.holm([one["p"] for one in answers[1:]])
  found = [dict(one) for one in answers[:1]]
  for one, p in zip(answers[1:], later):
    missed = one["verdict"] == "held" and p > _SIGNIFICANT
    found.append({**one, "holm": p, "verdict": "not resolved" if missed else one["verdict"]})
  return found


def sentence(answer: Mapping[str, Any], loss_of: str = "token") -> str:
  """The verdict on one contrast or finding, from its numbers; null stands for those that are not finite.

  A loss is the mean over each `loss_of`.
  """
  more_than, seeds = answer["more_than"], len(answer["seeds"])
  counts = {"never reach it": answer.get("censored", 0), "diverged": answer.get("diverged", 0)}
  notes = [f"{seeds} seed{'s' * (seeds > 1)}", *(f"{count} {what}" for what, count in counts.items() if count)]
  notes += _unequal(answer)
  if answer["verdict"] == "not resolved" and answer.get("needs"):
    notes.append(f"{_SOUGHT:g} nats take {answer['needs']}")
  holm = f", p = {answer['holm']:.2g} by Holm" if "holm" in answer else ""
  if answer["measure"] == "finding":
    claim = answer["claim"]
  elif answer["measure"] == "loss":
    arm, baseline = _sides(answer)
    claim = f"{arm} is better than {baseline}"
    claim += "" if more_than == _WORTH_A_WORD else f" by more than {more_than:g} nats"
  else:
    what = {"steps": "steps", "flops": "FLOPs"}[answer["measure"]]
    arm, baseline = answer["arm"], answer["baseline"]
    claim = f"{arm} needs more than {more_than:g} times fewer {what} than {baseline} for its final loss"
  return f"{claim}: {answer['verdict']}. {number(answer, loss_of)} ({'; '.join(notes)}{holm})."


def headline(
  answers: Sequence[Mapping[str, Any]], control: Mapping[str, Any] | None, loss_of: str = "token"
) -> Headline | None:
  """The primary answer in one row of a table; None if there is none. `loss_of` is as in `sentence`."""
  if not answers:
    return None
  first = answers[0]
  asked = first["claim"] if first["measure"] == "finding" else " against ".join(_sides(first))
  said = ", ".join([number(first, loss_of), *_unequal(first)])
  return Headline(first["verdict"], f"{asked}: {said}", len(first["seeds"]), control["verdict"] if control else "")


def _unequal(answer: Mapping[str, Any]) -> list[str]:
  """What is to be said of the FLOPs of both sides: nothing if they are about equal."""
  ratio = answer.get("flops")
  return [f"with {ratio:.2f} times the FLOPs"] if ratio and abs(ratio - 1) > _NOTED else []


def _sides(answer: Mapping[str, Any]) -> list[str]:
  """Both arms, and the rule that they are judged by, where it is not their own."""
  return [_judged(answer[side], answer[rule]) for side, rule in _SIDES]


def _judged(arm: str, rule: str) -> str:
  return f"{arm} under its causal twin" if rule == "causal" else arm


def number(answer: Mapping[str, Any], loss_of: str = "token") -> str:
  """The value of a contrast or finding with its interval; `loss_of` is as in `sentence`."""
  unit = {"loss": f" nats per {loss_of}", "steps": " times", "flops": " times", "finding": ""}[answer["measure"]]
  value, missed = answer["value"], answer.get("censored", 0)
  if missed and (value is None or not math.isfinite(value)):
    return f"{missed} of {len(answer['seeds'])} never reach that loss, {interval_text(answer)}"
  said = "no number" if value is None or not math.isfinite(value) else format(value, _form(answer)) + unit
  return f"{said}, {interval_text(answer)}"


def interval_text(answer: Mapping[str, Any]) -> str:
  """The interval in brackets; an end that is not finite is open."""
  low, high = np.array(answer["interval"], float)  # null becomes nan
  if not math.isfinite(high) and not low > 0:
    return "no interval"
  return f"[{low:{_form(answer)}}, {format(high, _form(answer)) if math.isfinite(high) else 'open'}]"


def _form(answer: Mapping[str, Any]) -> str:
  return ".2f" if answer["measure"] in ("steps", "flops") else "+.4f"
