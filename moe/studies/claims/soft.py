"""Is expert choice better when it is differentiable? Nobody has tried; Soft MoE and DSelect-k stand beside it."""

from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import ENCODER


def _soft(smoothing: float) -> Arm:
  return Arm(router={"name": "soft_expert_choice", "capacity_factor": 2.0, "smoothing": smoothing}, match="total")


_ARMS = {
  **{name: ARMS[name] for name in ("dense", "gshard", "expert_choice", "soft_expert_choice")},
  "soft_expert_choice_0.05": _soft(0.05),
  "soft_expert_choice_1": _soft(1.0),
  "soft_moe": Arm(router={"name": "soft_moe", "capacity_factor": 2.0, "group_size": 64}, match="total"),
  "dselect_k": ARMS["dselect_k"],
}


class Soft(LanguageModels, name="soft"):
  """In the encoder of a prefix language model; its causal form is in the study `routers`.

  Relaxed top-k computes about twice the slots of the hard one, so it has fewer steps for the same FLOPs.
  """

  claim = "A differentiable expert choice gives a lower loss than the hard one."
  source = "this project's; relaxed top-k: Blondel et al. 2020, arXiv 2002.08871"
  setting = ENCODER
  arms = _ARMS
  control = "gshard"
  contrasts = (
    Contrast("soft_expert_choice", "expert_choice"),
    Contrast("soft_expert_choice_0.05", "expert_choice"),
    Contrast("soft_expert_choice_1", "expert_choice"),
    Contrast("soft_moe", "expert_choice"),
    Contrast("dselect_k", "gshard"),
  )
