"""Does expert choice converge more than twice as fast as top-1 and top-2? Zhou et al. 2022, figure 2a."""

from moe.studies.arms import ARMS
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER

_NAMES = (
  *("dense", "switch", "gshard", "causal_top2", "dropless_top2", "loss_free", "hash"),
  *("expert_choice", "expert_choice_renormalized", "position_grouped", "prefix_rank", "threshold_shared"),
)

_ARMS = {name: ARMS[name] for name in _NAMES}


class Convergence(LanguageModels, name="convergence"):
  """The published curve is of decoders whose router sees later tokens, in training and in evaluation.

  So does published GShard's. Both are judged by their own rule, as published, and by their causal twins, beside methods
  that are causal in training too.
  """

  claim = "Expert choice reaches the loss of top-1 and of top-2 in less than half of the steps."
  source = "Zhou et al. 2022, figure 2a and section 4.2"
  setting = DECODER
  arms = _ARMS
  control = "dropless_top2"
  contrasts = (
    Contrast("expert_choice", "gshard", "steps", more_than=2),
    Contrast("expert_choice", "switch", "steps", more_than=2),
    Contrast("expert_choice", "gshard", "flops", more_than=2),
    Contrast("expert_choice", "gshard"),
    Contrast("expert_choice", "gshard", rule="causal"),
    *(Contrast(arm, "dropless_top2") for arm in ("position_grouped", "prefix_rank", "threshold_shared", "loss_free")),
    Contrast("expert_choice_renormalized", "expert_choice"),
    Contrast("dropless_top2", "causal_top2"),
    Contrast("dropless_top2", "hash"),
  )
