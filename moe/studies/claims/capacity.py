"""How much capacity do experts need? Zhou et al. 2022, figure 4a."""

from moe.studies.arms import ARMS, Arm, expert_choice
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import ENCODER


def _top2(slots_per_choice: float) -> Arm:
  return Arm(router={"name": "gshard", "capacity_factor": 2 * slots_per_choice}, match="steps")


_ARMS = {
  "dense": ARMS["dense"],
  "expert_choice": ARMS["expert_choice"],
  "expert_choice_1": Arm(router=expert_choice(capacity_factor=1.0), match="steps"),
  "expert_choice_half": Arm(router=expert_choice(capacity_factor=0.5), match="steps"),
  "top1": Arm(router={"name": "switch"}, match="steps"),
  "gshard": ARMS["gshard"],
  "gshard_1.25": _top2(1.25),
  "gshard_2": _top2(2.0),
}


class Capacity(LanguageModels, name="capacity"):
  """The same experts with more or fewer slots, for as many steps: as published, at FLOPs that differ.

  Top-1 has the same experts too, and computes half as much as top-2; what it reaches at equal FLOPs is in the study
  `encoder`.
  """

  claim = "Expert choice with capacity factor 2 is better than with 1, that than with 0.5, and that than top-1."
  source = "Zhou et al. 2022, figure 4a"
  setting = ENCODER
  arms = _ARMS
  control = "gshard"
  contrasts = (
    Contrast("expert_choice_half", "top1"),
    Contrast("expert_choice", "expert_choice_1"),
    Contrast("expert_choice_1", "expert_choice_half"),
    Contrast("gshard_1.25", "gshard"),
    Contrast("gshard_2", "gshard_1.25"),
    Contrast("expert_choice", "gshard_2"),
  )
