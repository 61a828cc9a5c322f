"""Is there a causal expert choice that beats every token choice? A search, and its confirmation with fresh seeds."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast, answer_to, block_losses, by_seed, corrected
from moe.studies.language_models import TUNING, LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Inputs, Job, Result

_EXPLORED = 2  # seeds of the search
_FRESH = 100  # the first seed of the confirmation


def _threshold(capacity_factor: float = 1.0, **options: Any) -> dict[str, Any]:
  return {"name": "threshold", "capacity_factor": capacity_factor, "slack": None, **options}


def _prefix(capacity_factor: float = 2.0, **options: Any) -> dict[str, Any]:
  return {"name": "prefix_rank", "capacity_factor": capacity_factor, "slack": None, **options}


# Token choice, with the shared expert and the finer experts that the candidates have too.
_BASELINES = {
  **{name: ARMS[name] for name in ("dropless_top2", "loss_free", "quantile_balanced")},
  "loss_free_shared": Arm(router={"name": "loss_free", "top_k": 1}, shared=1),
  "loss_free_finer": Arm(router={"name": "loss_free", "top_k": 3}, parts=4, shared=1, match="total"),
}

# Expert choice that sees no later token when it is evaluated; `warm` trains on them at first, as its paper does.
_CANDIDATES = {
  **{name: ARMS[name] for name in ("position_grouped", "prefix_rank", "threshold_shared")},
  "position_grouped_renormalized": Arm(
    router={"name": "position_grouped", "capacity_factor": 2.0, "renormalize": True}
  ),
  "prefix_rank_renormalized": Arm(router=_prefix(renormalize=True)),
  "prefix_rank_pseudo": Arm(router=_prefix(renormalize=True, pseudo_observations=64.0)),
  "prefix_rank_shared": Arm(router=_prefix(1.0), shared=1, gate_scale=8.0),
  "threshold_renormalized": Arm(router=_threshold(2.0, renormalize=True)),
  "threshold_shared_sigmoid": Arm(router=_threshold(gate="sigmoid"), shared=1),
  "threshold_shared_scaled": Arm(router=_threshold(), shared=1, gate_scale=8.0),
  "threshold_shared_warm": Arm(router=_threshold(gate="sigmoid", warmup_steps=200), shared=1),
  "threshold_finer": Arm(router=_threshold(3.0, gate="sigmoid"), parts=4, shared=1, match="total"),
  "causal_soft_expert_choice": Arm(router={"name": "causal_soft_expert_choice", "gate": "one"}),
}


_HASH = "hash"  # which learns no choice: run again beside the two that do
_ARMS = {"dense": ARMS["dense"], _HASH: ARMS[_HASH], **_BASELINES, **_CANDIDATES}


class Causal(LanguageModels, name="causal"):
  """Two seeds of every try; then, with fresh seeds, the best candidate against the best token choice, and a hash layer.

  All tries are in the table. The contrasts are those of the confirmation alone, whose seeds have chosen nothing. The
  learning rates are those of the search.
  """

  claim = "A causal form of expert choice gives a lower loss than the best learned token choice at equal FLOPs."
  source = "this project's; Expert Threshold 2026, arXiv 2603.11535, has 0.067 nats at 2.4B parameters"
  setting = DECODER
  arms = _ARMS
  contrasts = (Contrast("threshold_shared", "dropless_top2"),)
  control = "dropless_top2"

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan, arms = self.setting.budgets[budget], self.all_arms(budget, inputs, results)
    jobs = super().jobs(budget, inputs, results)
    explored = min(_EXPLORED, plan.seeds)
    searched = [job for job in jobs if job.tags["seed"] == TUNING or job.tags["seed"] < explored]
    chosen = self._chosen(results, arms, explored)
    if len(searched) < len(jobs) and not chosen:
      return searched
    rates = self.rates(budget, results) or dict.fromkeys(arms, plan.rates[0])
    return searched + [
      self._job(budget, inputs, name, arms[name], rates[name], _FRESH + seed)
      for seed in range(plan.seeds)
      for name in chosen
    ]

  def _chosen(self, results: Sequence[Result], arms: Mapping[str, Arm], explored: int) -> list[str]:
    """The best candidate and the best baseline of the search, and the hash layer; none before it is finished."""
    losses = {name: _losses(results, name, explored) for name in arms}
    if any(len(found) < explored for found in losses.values()):
      return []
    means = {name: np.nan_to_num(np.mean(found), nan=np.inf) for name, found in losses.items()}
    given = [name for name in arms if name not in self.arms]
    sides = [*(name for name in _CANDIDATES if name in arms), *given], [name for name in _BASELINES if name in arms]
    return [*(min(side, key=means.__getitem__) for side in sides), *(name for name in arms if name == _HASH)]

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    searched = [one for one in results if _is_of_search(one.tags)]
    fresh = [one for one in results if not _is_of_search(one.tags)]
    runs = {name: by_seed(fresh, name) for name in dict.fromkeys(one.tags["arm"] for one in fresh)}
    candidate = next((name for name in runs if name not in (*_BASELINES, _HASH)), "")
    baseline = next((name for name in runs if name in _BASELINES), "")
    primary, later = (answer_to(Contrast(candidate, other), runs) for other in (baseline, _HASH))
    answers = [one for one in (primary, later) if one] if primary else []  # the second is not to be read as the first
    return super().analyse(budget, searched) | {"contrasts": corrected(answers)}

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    """The search; what confirms it is of other seeds."""
    searched = [one for one in analysis["results"] if _is_of_search(one["tags"])]
    return super().draw({**analysis, "results": searched}, path)


def _is_of_search(tags: Mapping[str, Any]) -> bool:
  return tags["seed"] == TUNING or tags["seed"] < _FRESH


def _losses(results: Sequence[Result], arm: str, seeds: int) -> list[float]:
  """Of the search's seeds."""
  found = [one for one in results if one.tags["arm"] == arm and one.tags["seed"] in range(seeds)]
  return [float(np.mean(block_losses(one, "causal"))) for one in found]
