"""Must a token be able to have many experts? Zhou et al. 2022, section 3.3 and table 4."""

from typing import Any

from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import ENCODER


def _capped(cap: int, **options: Any) -> Arm:
  return Arm(router={"name": "capped_expert_choice", "capacity_factor": 2.0, "cap": cap, **options})


_ARMS = {
  **{name: ARMS[name] for name in ("dense", "gshard", "hash", "expert_choice")},
  "cap2": _capped(2, solver="dykstra"),
  "cap3": _capped(3, solver="dykstra"),
  "cap2_hard": _capped(2, solver="hard"),
  "cap3_hard": _capped(3, solver="hard"),
}


class Capped(LanguageModels, name="capped"):
  """Caps as published, by Dykstra's algorithm, whose plan exceeds them a little, and caps that hold exactly."""

  claim = "Expert choice with a cap of 2 experts per token is worse, with a cap of 3 it is not; hash layers are worse."
  source = "Zhou et al. 2022, table 4"
  setting = ENCODER
  arms = _ARMS
  control = "gshard"
  contrasts = (
    Contrast("expert_choice", "cap2"),
    Contrast("expert_choice", "cap3"),
    Contrast("expert_choice", "cap2_hard"),
    Contrast("expert_choice", "cap3_hard"),
    Contrast("expert_choice", "hash"),
    Contrast("gshard", "hash"),
  )
