"""S-BASE: BASE with Sinkhorn's soft plan in place of the exact assignment. Clark et al. 2022, arXiv 2202.01169."""

import dataclasses
from typing import Literal

import jax
from flax import nnx

from moe.config import require
from moe.routing.groups import within_sequences
from moe.routing.router import Site
from moe.routing.solvers.sinkhorn import sinkhorn_plan
from moe.routing.top_k import Logits, TopKConfig, TopKRouter


@dataclasses.dataclass(frozen=True)
class SinkhornBaseConfig(TopKConfig, name="sinkhorn_base"):
  """S-BASE: the largest shares of a Sinkhorn plan in training, the largest logits in evaluation.

  Attributes:
    top_k: experts per token.
    capacity_factor: only None: the plan nearly balances the load, and the excess is not dropped.
    group_size: tokens balanced together in training; 0 for the whole batch.
    scores: the gate: sigmoid of the chosen logit, as in BASE, or the softmax.
  """

  paper = "Clark et al. 2022, arXiv 2202.01169"

  top_k: int = 1
  scores: Literal["softmax", "sigmoid"] = "sigmoid"

  def __post_init__(self):
    super().__post_init__()
    require(self.dropless, "capacity_factor", self.capacity_factor, "expected None: this router is dropless")

  def make(self, site: Site, rngs: nnx.Rngs) -> "SinkhornBase":
    return SinkhornBase(self, site, rngs=rngs)

  def is_causal(self, *, training: bool) -> bool:
    return not training

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return not training or within_sequences(self.group_size, length)

  def check(self, site: Site, batch: int, length: int) -> None:
    super().check(site, batch, length)
    group, experts = self.groups(batch, length).size, site.num_experts
    require(group >= experts, "group_size", group, f"expected at least one token for each of the {experts} experts")


class SinkhornBase(TopKRouter):
  """A token takes the experts of its largest plan shares in training, of its largest logits in evaluation."""

  config: SinkhornBaseConfig

  def ranking(self, logits: Logits, scores: jax.Array, mask: jax.Array, *, training: bool) -> jax.Array:
    if not training:
      return logits.clean  # not the scores: a sigmoid of large logits is 1 for all of them
    return jax.vmap(sinkhorn_plan)(jax.lax.stop_gradient(logits.clean), mask)
