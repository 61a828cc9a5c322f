"""Balanced assignment against its relatives: BASE, Sinkhorn, top-1 and hash. Lewis et al. 2021; Clark et al. 2022."""

from moe.studies.arms import ARMS
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER

_ARMS = {name: ARMS[name] for name in ("dense", "switch", "hash", "base", "sinkhorn_base")}


class Base(LanguageModels, name="base"):
  """One expert per token, as wide as the dense network. BASE and Sinkhorn balance training only, with all tokens."""

  claim = "A balanced assignment gives a lower loss than Switch's auxiliary loss."
  source = "Lewis et al. 2021, arXiv 2103.16716, figure 2; Clark et al. 2022, arXiv 2202.01169, figure 2"
  setting = DECODER
  arms = _ARMS
  control = "switch"
  contrasts = (
    Contrast("base", "switch"),
    Contrast("sinkhorn_base", "switch"),
    Contrast("sinkhorn_base", "base"),
    Contrast("base", "hash"),
  )
