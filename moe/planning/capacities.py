"""Quality against compute of one checkpoint: V-MoE's capacity at inference (Riquelme et al. 2021, section 4)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from moe.config import require
from moe.data import DataConfig
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import Trained
from moe.models import ModelConfig
from moe.parallel.platform import default_platform
from moe.planning.traced import traced_flops
from moe.routing.capacity import CapacityConfig
from moe.training.state import merge, split


@dataclasses.dataclass(frozen=True)
class AtCapacity:
  """A checkpoint with a capacity factor in evaluation.

  Attributes:
    factor: slots per token: a factor of k holds every one of k choices if they are balanced.
    loss: nats per picture.
    accuracy: a share.
    dropped: the share of the choices that found no slot, mean over MoE layers.
    flops: of the matrix products of a forward pass, per picture; empty slots count.
  """

  factor: float
  loss: float
  accuracy: float
  dropped: float
  flops: float


def at_capacities(
  trained: Trained, data: DataConfig, split_name: str, factors: Sequence[float], batches: int = 0
) -> list[AtCapacity]:
  """Evaluates one checkpoint with several capacity factors; nothing is trained.

  Args:
    trained: of a model that reads pictures, whose router has slots.
    data: the pictures.
    split_name: of the data.
    factors: each above 0; it may be below 1.
    batches: how many to read; 0 for the whole split.

  Raises:
    ConfigError: the router has no capacity, or a factor is out of range; and as `evaluate`.
  """
  found = []
  for factor in factors:
    one = with_capacity(trained, factor)
    record = evaluate(one, data, split_name, batches)
    dropped = [value for name, value in record.items() if name.endswith("/dropped")]
    flops = forward_flops(one, data) / data.batch_size
    found.append(AtCapacity(factor, record["loss"], record["accuracy"], sum(dropped) / len(dropped), flops))
  return found


def with_capacity(trained: Trained, factor: float) -> Trained:
  """The same parameters with another capacity factor in the evaluation of the encoder.

  Raises:
    ConfigError: its router has no capacity factor, or a fixed number of slots instead; or the factor is not above 0.
  """
  stack = trained.config.model.stacks["encoder"]
  router = stack.router
  has_factor = isinstance(router, CapacityConfig) and router.capacity_factor is not None
  name = router.name if router else None
  require(has_factor, "--capacities", name, "expected a router with a capacity factor in the encoder")
  slots = getattr(router, "slots", None)
  wanted = "expected a router with slots = None in the encoder: a fixed number takes the place of its capacity factor"
  require(slots is None, "--capacities", name, wanted)
  assert isinstance(router, CapacityConfig) and stack.moe is not None
  require(factor > 0, "--capacities", factor, "expected more than 0")
  moe = dataclasses.replace(stack.moe, router=dataclasses.replace(router, eval_capacity_factor=factor))
  changes: Any = {"encoder": dataclasses.replace(stack, moe=moe)}
  model: ModelConfig = dataclasses.replace(trained.config.model, **changes)
  graph, _, _ = split(nnx.eval_shape(lambda: model.make(nnx.Rngs(0))))
  return dataclasses.replace(trained, config=dataclasses.replace(trained.config, model=model), graph=graph)


def forward_flops(trained: Trained, data: DataConfig) -> int:
  """FLOPs of the matrix products of a model's evaluation of one batch, without computing it."""
  batch = data.row_shape(trained.config.model.row_format).empty(data.batch_size)

  def logits(params: Any, router_state: Any, batch: Any) -> jax.Array:
    return merge(trained.graph, params, router_state)(batch, training=False).logits

  jaxpr = jax.jit(logits).trace(trained.params, trained.router_state, batch).jaxpr
  return sum(traced_flops(jaxpr, default_platform()).values())
