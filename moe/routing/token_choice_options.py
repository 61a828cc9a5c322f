"""What can be chosen about token choice, and what the published methods chose."""

import dataclasses
from typing import Literal

from moe.config import require
from moe.routing.capacity import CapacityOptions


@dataclasses.dataclass(frozen=True)
class TokenChoiceOptions(CapacityOptions):
  """Options of token choice.

  V-MoE is `token_choice` with order "batch_priority" (or "sequence"), noise 1, importance_loss and load_loss 0.005.

  Attributes:
    top_k: experts per token.
    capacity_factor: each expert has capacity_factor * n / E slots in a group of n tokens (`moe.routing.capacity`), so
      top_k is the least that can hold every choice; None for dropless.
    eval_capacity_factor: the one of evaluation and decoding; None for the same. With E no choice can be dropped.
    order: who gets the slots. "sequence": a group is one sequence, earlier tokens first; causal. "batch_priority":
      V-MoE's, the most confident tokens of the group first.
    group_size: tokens of a group for batch_priority and dropless; 0 for the whole batch.
    renormalize: whether the gates of a token's k choices sum to 1.
    second_expert: "all", or "random": in training the second is kept with probability min(1, 2 g_2).
    jitter: in training the router's input is multiplied by uniform(1 - jitter, 1 + jitter).
    noise: in training the logits receive Gaussian noise of standard deviation noise / E.
    balance_loss: weight of Switch's load-balancing loss.
    importance_loss: weight of Shazeer's importance loss.
    load_loss: weight of Shazeer's load loss; needs noise, and is taken in training only.
    z_loss: weight of the router z-loss.
  """

  top_k: int = 2
  capacity_factor: float | None = 2.0
  order: Literal["sequence", "batch_priority"] = "sequence"
  group_size: int = 0
  renormalize: bool = False
  second_expert: Literal["all", "random"] = "all"
  jitter: float = 0.0
  noise: float = 0.0
  balance_loss: float = 0.01
  importance_loss: float = 0.0
  load_loss: float = 0.0
  z_loss: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    require(self.top_k >= 1, "top_k", self.top_k, "expected at least 1 expert per token")
    require(
      self.group_size == 0 or (self.group_size > 0 and not self.queues_by_sequence),
      "group_size",
      self.group_size,
      "expected 0 for order = 'sequence', whose groups are single sequences; more is for batch_priority and dropless",
    )
    require(
      self.top_k > 1 or not self.renormalize,
      "renormalize",
      self.renormalize,
      "expected False for top_k = 1: its only gate would always be 1 and the router would learn nothing",
    )
    require(
      self.second_expert == "all" or self.top_k == 2, "second_expert", self.second_expert, "'random' needs top_k = 2"
    )
    require(0 <= self.jitter < 1, "jitter", self.jitter, "expected at least 0 and less than 1")
    for name in ("noise", "balance_loss", "importance_loss", "load_loss", "z_loss"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "expected at least 0")
    require(self.load_loss == 0 or self.noise > 0, "load_loss", self.load_loss, "needs noise > 0: it smooths over it")

  @property
  def dropless(self) -> bool:
    return self.capacity_factor is None

  @property
  def queues_by_sequence(self) -> bool:
    return not self.dropless and self.order == "sequence"

  @property
  def draws(self) -> bool:
    """Whether training draws random numbers."""
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
