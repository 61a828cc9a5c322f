"""Is balance without an auxiliary loss better than with one? Wang et al. 2024, sections 3 and 4."""

from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER


def _loss_free(rate: float) -> Arm:
  return Arm(router={"name": "loss_free", "bias_rate": rate})


_ARMS = {
  "dense": ARMS["dense"],
  "dropless_top2": ARMS["dropless_top2"],
  "dropless_unbalanced": Arm(router={"name": "dropless", "renormalize": True, "balance_loss": 0.0}),
  "dropless_sigmoid": Arm(router={"name": "dropless", "scores": "sigmoid", "balance_scope": "batch"}),
  "loss_free": ARMS["loss_free"],
  "loss_free_1e-4": _loss_free(1e-4),
  "loss_free_1e-2": _loss_free(1e-2),
  "quantile_balanced": ARMS["quantile_balanced"],
}


class Balance(LanguageModels, name="balance"):
  """Dropless top-2 with sigmoid gates and biases, or with softmax gates and Switch's loss over the batch."""

  claim = (
    "Balance by biases gives a lower loss than balance by an auxiliary loss, and the size of a bias's step matters."
  )
  source = "Wang et al. 2024, arXiv 2408.15664, table 2 (perplexity 9.50 against 9.56) and figure 4"
  setting = DECODER
  arms = _ARMS
  control = "dropless_top2"
  contrasts = (
    Contrast("loss_free", "dropless_sigmoid"),
    Contrast("loss_free", "dropless_top2"),
    Contrast("loss_free", "loss_free_1e-4"),
    Contrast("loss_free", "loss_free_1e-2"),
    Contrast("quantile_balanced", "loss_free"),
    Contrast("dropless_top2", "dropless_unbalanced"),
  )
