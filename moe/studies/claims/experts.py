"""Does perplexity fall with the number of experts, and stay below top-2's? Zhou et al. 2022, figure 2b."""

from moe.studies.arms import ARMS, Arm, expert_choice, top2
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import ENCODER

# Relative to the setting's number of experts: 4 to 64 where that is 4.
_NUMBERS = {"one": 1.0, "four": 4.0, "sixteen": 16.0}


def _named(method: str, number: str) -> str:
  return method if number == "one" else f"{method}_{number}_experts"


_ARMS = {
  "dense": ARMS["dense"],
  **{
    _named(method, number): Arm(router=router, experts=share, match="step" if share == 1 else "total")
    for method, router in {
      "expert_choice": expert_choice(),
      "expert_choice_renormalized": expert_choice(renormalize=True),
      "gshard": top2("gshard"),
    }.items()
    for number, share in _NUMBERS.items()
  },
}


class Experts(LanguageModels, name="experts"):
  """Experts of one width, at the activated FLOPs of the dense network, in the encoder of a prefix language model.

  Their number goes from the setting's to sixteen times that. Gates of expert choice are about 1 / E at the start, so
  that its branch is weaker the more experts there are; with renormalised gates it is not.
  """

  claim = "With more experts the loss of expert choice falls, and it is below that of top-2 with as many."
  source = "Zhou et al. 2022, figure 2b, where the models are decoders"
  setting = ENCODER
  arms = _ARMS
  control = "gshard"
  contrasts = (
    Contrast(_named("expert_choice", "sixteen"), _named("expert_choice", "one")),
    *(Contrast(_named("expert_choice", number), _named("gshard", number)) for number in _NUMBERS),
    Contrast(_named("gshard", "sixteen"), _named("gshard", "one")),
    Contrast(_named("expert_choice_renormalized", "sixteen"), _named("expert_choice_renormalized", "one")),
  )
