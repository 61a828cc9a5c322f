"""Where does any router stand? All that make sense in a language model, in one ranking."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.markdown import markdown_table
from moe.studies.arms import ARMS, Arm, top2
from moe.studies.contrasts import Contrast, answer_to, by_seed, number
from moe.studies.language_models import TUNING, LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Result

_BASELINE = "causal_top2"

_SHARED = (
  *("dense", "switch", "gshard", "causal_top2", "dropless_top2", "loss_free", "quantile_balanced", "base"),
  *("sinkhorn_base", "hash", "expert_choice", "expert_choice_renormalized", "position_grouped", "prefix_rank"),
  *("threshold_shared", "dselect_k"),
)


def _one(router: str, **options: Any) -> Arm:
  """A router that gives a token one expert, as wide as the dense network."""
  return Arm(router={"name": router, **options}, parts=1)


def _two(router: str, **options: Any) -> Arm:
  """A router with the slots of two experts per token, however many it would give it."""
  return Arm(router=top2(router, **options))


_ARMS = {
  **{name: ARMS[name] for name in _SHARED},
  # Token choice.
  "causal_gshard": _two("causal_gshard"),
  "batch_priority": _two("batch_priority"),
  "noisy_top_k": Arm(router=top2("noisy_top_k"), match="total"),
  "straight_through": _one("straight_through"),
  "deepseek_v3": Arm(router={"name": "deepseek_v3"}),
  # Some of its choices compute nothing, so its steps are cheaper, and there are more of them.
  "moe_plus_plus": Arm(router=top2("moe_plus_plus"), match="total"),
  "reinforce": _one("reinforce"),
  "rl_r": _one("rl_r"),
  "k_means": Arm(router={"name": "k_means"}, parts=1, match="total"),
  "hash_random": _one("hash", function="random"),
  # Gates that open for any number of experts.
  "relu": _two("relu"),
  "top_p": _two("top_p"),
  "noisy_rectifier": _two("noisy_rectifier"),
  "stochastic_times_smooth": _two("stochastic_times_smooth", evaluation="threshold"),
  # Relatives of expert choice.
  "cap3": _two("capped_expert_choice", cap=3),
  "strictly_balanced": _two("strictly_balanced"),
  "threshold": _two("threshold", slack=None),
  # The published share of the steps is expert choice.
  "expert_threshold": Arm(router={"name": "expert_threshold", "capacity_factor": 1.0, "warmup_steps": 200}, shared=1),
  "causal_soft_expert_choice": Arm(router={"name": "causal_soft_expert_choice", "gate": "one"}),
  # Expert choice over depth, without experts: of every second block an eighth of the tokens. Judged by the rule of its
  # evaluation, which is causal; its steps are cheaper, and there are more of them.
  "mixture_of_depths": Arm(
    router=None,
    match="total",
    model={"model.decoder.depth": {"capacity": 0.125, "every": 2}, "model.allow_future_leakage": True},
  ),
}


class Routers(LanguageModels, name="routers"):
  """The study to which `--arm` adds a reader's own router: nothing is claimed.

  All are ranked by losses that know nothing of later tokens: of a router that does, by its causal twin. Missing are
  routers that leak and have no twin, hashes that need a table (study `hash`), and mixtures of all experts. Where a
  router gives a token as many experts as it likes, it has the slots of two, or the ranking says how many FLOPs it took.
  Each interval is of one comparison: of thirty, one or two miss by chance.
  """

  claim = "Nothing is claimed: where routers stand in a language model, at equal FLOPs and with equal tuning."
  source = "this project's"
  setting = DECODER
  arms = _ARMS
  control = "dropless_top2"
  contrasts = (Contrast("expert_choice", _BASELINE, rule="causal"),)

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    found = super().analyse(budget, results)
    runs = {arm: by_seed([one for one in results if one.tags["seed"] != TUNING], arm) for arm in found["arms"]}
    answers = [answer_to(Contrast(arm, _BASELINE, rule="causal"), runs) for arm in runs]
    flops = {arm: of["flops"] for arm, of in found["arms"].items()}
    ranking = [one | {"flops": flops[one["arm"]] / flops[_BASELINE]} for one in answers if one is not None]
    # Those that diverged last.
    return found | {"ranking": sorted(ranking, key=lambda one: -np.nan_to_num(one["value"], nan=-np.inf))}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    rows = [
      [
        str(place),
        one["arm"] + " (its causal twin)" * (one["rule"] == "causal"),
        number(one),
        str(len(one["seeds"])),
        f"{one['flops']:.2f}",
      ]
      for place, one in enumerate(analysis["ranking"], start=1)
    ]
    heads = ["", "router", f"better than {_BASELINE} by", "seeds", "FLOPs"]
    return [*super().lines(analysis), "", *markdown_table(heads, rows)]
