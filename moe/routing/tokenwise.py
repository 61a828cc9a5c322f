"""Routers that decide about every token by itself: any number of experts each, causal unless `select` looks further.

A subclass says which experts a token takes and with what weights (`select`); slots, drops and decoding are done here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moe.config import require
from moe.routing import queues
from moe.routing.capacity import CapacityConfig, token_choice_capacity
from moe.routing.groups import Groups
from moe.routing.metrics import routing_metrics
from moe.routing.router import Router, RouterConfig
from moe.routing.types import Policy, RouterInput, RouterOutput, Routing


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which experts each token takes.

  Attributes:
    chosen: bool `[G, n, E]`; padding is left out afterwards.
    weight: float32 `[G, n, E]`, of which only the chosen count; the gradient flows through it.
    probs: float32 `[G, n, E]` for the entropy metric, or None.
    losses, auxiliary_loss, policy: as in `RouterOutput`.
  """

  chosen: jax.Array
  weight: jax.Array
  probs: jax.Array | None = None
  losses: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  auxiliary_loss: jax.Array | float = 0.0
  policy: Policy | None = None


class TokenwiseConfig(RouterConfig):
  """What these routers declare. Goes before `CapacityConfig`, or a class of it, among the bases of a config.

  A group is one sequence, since capacity is counted there: a capacity factor gives slots, served by position; None is
  dropless.
  """

  def is_causal(self, *, training: bool) -> bool:
    return True

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return True

  def groups(self, batch: int, length: int) -> Groups:
    return Groups(length)


class TokenwiseRouter(Router):
  """The frame: a method adds `select`. A layer costs what its assignments cost (dropless, on a CPU) or its slots do."""

  config: CapacityConfig

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """Decides about all tokens of `inputs`; in training it may assign the router's state."""
    raise NotImplementedError

  def select_next(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[Selection, dict[str, jax.Array]]:
    """Decides about one token of each sequence, in evaluation mode; for routers that remember earlier tokens."""
    return self.select(inputs, training=False), state

  def init_memory(self, batch: int, length: int) -> dict[str, jax.Array]:
    """What `select_next` remembers of the tokens before; arrays lead with `batch`."""
    return {}

  def capacity(self, length: int, *, training: bool) -> int | None:
    """Slots of every expert for a sequence of `length` tokens; None for dropless."""
    factor = self.config.factor(training)
    return None if factor is None else token_choice_capacity(length, self.num_experts, factor)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    selection = self.select(inputs, training=training)
    chosen = selection.chosen & inputs.mask[..., None]
    routing = self._routing(chosen, selection.weight, training)
    metrics = routing_metrics(routing, inputs.mask, selection.probs, asked=chosen.sum())
    auxiliary_loss = jnp.asarray(selection.auxiliary_loss, jnp.float32)
    return RouterOutput(routing, selection.losses, auxiliary_loss, metrics, selection.policy)

  def _routing(self, chosen: jax.Array, weight: jax.Array, training: bool) -> Routing:
    capacity = self.capacity(chosen.shape[1], training=training)
    if capacity is None:
      return jax.vmap(queues.ragged_of_chosen)(chosen, weight)
    return jax.vmap(lambda c, w: queues.slots_of_chosen(c, w, capacity))(chosen, weight)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`init_memory`, and `free`: int32 `[batch, E]`, slots left, where there are slots."""
    state, capacity = self.init_memory(batch, length), self.capacity(length, training=False)
    if capacity is not None:
      state = state | {"free": jnp.full((batch, self.num_experts), capacity, jnp.int32)}
    return state

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """As the base class says. The routing is ragged, as nothing is left to fill slots with."""
    if not self.config.is_causal(training=False):
      return super().decode(inputs, state)
    selection, state = self.select_next(inputs, state)
    chosen = selection.chosen[0] & inputs.mask[0][:, None]
    if "free" in state:
      chosen = chosen & (state["free"] > 0)
      state = state | {"free": state["free"] - chosen}
    routing = jax.tree.map(lambda leaf: leaf[None], queues.ragged_of_chosen(chosen, selection.weight[0]))
    return RouterOutput(routing, {}, jnp.zeros(()), {}), state


def require_room_for_all(config: CapacityConfig, num_experts: int, *, training: bool) -> None:
  """For routers that send every token to every expert.

  Raises:
    ConfigError: there are slots in this mode, and fewer than that.
  """
  factor = config.factor(training)
  separate = not training and config.eval_capacity_factor is not None
  require(
    factor is None or factor >= num_experts,
    "eval_capacity_factor" if separate else "capacity_factor",
    factor,
    f"every token goes to all {num_experts} experts: expected at least {num_experts}, or None (dropless)",
  )
