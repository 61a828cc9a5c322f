"""Expert choice against token choice where it is legal: in the encoder of a prefix language model."""

from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import ENCODER

_SOFT_MOE = Arm(router={"name": "soft_moe", "capacity_factor": 2.0, "group_size": 64}, match="total")

_ARMS = {
  **{name: ARMS[name] for name in ("dense", "switch", "gshard", "expert_choice", "expert_choice_renormalized")},
  "soft_expert_choice": ARMS["soft_expert_choice"],
  "soft_moe": _SOFT_MOE,
}


class Encoder(LanguageModels, name="encoder"):
  """The decoder is dense and the same in all arms, and the loss is on every target, so nothing can leak.

  Soft MoE mixes whole rows of the encoder, with two slots per token for the cost of two experts.
  """

  claim = "In an encoder, expert choice reaches the loss of top-2 in less than half of the steps."
  source = "Zhou et al. 2022, figure 2a, where the models are decoders"
  setting = ENCODER
  arms = _ARMS
  control = "gshard"
  contrasts = (
    Contrast("expert_choice", "gshard", "steps", more_than=2),
    Contrast("expert_choice", "gshard"),
    Contrast("expert_choice", "switch"),
    Contrast("expert_choice_renormalized", "gshard"),
    Contrast("soft_moe", "expert_choice"),
    Contrast("soft_expert_choice", "expert_choice"),
  )
