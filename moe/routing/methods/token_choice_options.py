"""What can be chosen about token choice, and what the published methods chose."""

import dataclasses
from typing import Literal

from moe.config import require
from moe.routing.top_k import TopKOptions


@dataclasses.dataclass(frozen=True)
class TokenChoiceOptions(TopKOptions):
  """Options of token choice, beside those of every top-k router.

  Attributes:
    order: who gets the slots. "sequence": a group is one sequence, earlier tokens first; causal. "batch_priority":
      V-MoE's, the most confident tokens of the group first.
    second_expert: "all", or "random": in training the second is kept with probability min(1, 2 g_2).
    jitter: in training the router's input is multiplied by uniform(1 - jitter, 1 + jitter).
    noise: in training the logits receive Gaussian noise of standard deviation noise / E.
    importance_loss: weight of Shazeer's importance loss, of the scores of all experts, without noise.
    load_loss: weight of Shazeer's load loss; needs noise, and is taken in training only.
  """

  capacity_factor: float | None = 2.0
  order: Literal["sequence", "batch_priority"] = "sequence"
  second_expert: Literal["all", "random"] = "all"
  jitter: float = 0.0
  noise: float = 0.0
  balance_loss: float = 0.01
  importance_loss: float = 0.0
  load_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(
      self.second_expert == "all" or self.top_k == 2, "second_expert", self.second_expert, "'random' needs top_k = 2"
    )
    require(0 <= self.jitter < 1, "jitter", self.jitter, "expected at least 0 and less than 1")
    require(self.noise >= 0, "noise", self.noise, "expected at least 0")
    require(self.load_loss == 0 or self.noise > 0, "load_loss", self.load_loss, "needs noise > 0: it smooths over it")

  @property
  def queues_by_sequence(self) -> bool:
    return not self.dropless and self.order == "sequence"

  @property
  def draws(self) -> bool:
    return self.jitter > 0 or self.noise > 0 or self.second_expert == "random"


@dataclasses.dataclass(frozen=True)
class SwitchOptions(TokenChoiceOptions):
  """Fedus et al. 2021, arXiv 2101.03961: top-1 with input jitter; capacity factors 1.25 and 2 as in its public code."""

  top_k: int = 1
  capacity_factor: float | None = 1.25
  eval_capacity_factor: float | None = 2.0
  jitter: float = 0.01


@dataclasses.dataclass(frozen=True)
class GShardOptions(TokenChoiceOptions):
  """Lepikhin et al. 2020, arXiv 2006.16668: top-2, the second by chance, gates renormalised, capacity 2 n / E."""

  renormalize: bool = True
  second_expert: Literal["all", "random"] = "random"


@dataclasses.dataclass(frozen=True)
class GLaMOptions(TokenChoiceOptions):
  """Du et al. 2021, arXiv 2112.06905: top-2, both experts always, gates renormalised."""

  renormalize: bool = True


@dataclasses.dataclass(frozen=True)
class BatchPriorityOptions(TokenChoiceOptions):
  """Riquelme et al. 2021 (V-MoE), arXiv 2106.05974: top-2, noise of standard deviation 1 / E, slots by priority.

  The capacity ratio of the paper is 1.05, times top_k here, where 1 means one expert per token. The load loss is
  Shazeer's: an expert has to beat the k-th highest of the others, where V-MoE's counts the expert itself among them.
  """

  capacity_factor: float | None = 2.1
  order: Literal["sequence", "batch_priority"] = "batch_priority"
  noise: float = 1.0
  balance_loss: float = 0.0
  importance_loss: float = 0.005
  load_loss: float = 0.005


@dataclasses.dataclass(frozen=True)
class DroplessOptions(TokenChoiceOptions):
  """Gale et al. 2022 (MegaBlocks), arXiv 2211.15841: top-2 without a capacity."""

  capacity_factor: float | None = None
