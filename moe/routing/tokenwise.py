"""Routers that decide on each token independently: any number of experts, causal unless `select` looks further.

A subclass says which experts a token takes, with what weights (`select`); slots, drops and decoding are done here.
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
    chosen: bool `[G, n, E]`; padding is removed afterwards.
    weight: float32 `[G, n, E]`, used only where chosen; the gradient flows through it.
    probs: float32 `[G, n, E]` for the entropy metric, or None.
    losses, auxiliary_loss, policy, seen: as in `RouterOutput`.
    most: how many experts a token has at most, for which dropless routing makes room; None if it may have all.
  """

  chosen: jax.Array
  weight: jax.Array
  probs: jax.Array | None = None
  losses: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  auxiliary_loss: jax.Array | float = 0.0
  policy: Policy | None = None
  seen: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  most: int | None = None


class TokenwiseConfig(RouterConfig):
  """Base config of these routers; comes before `CapacityConfig`, or a subclass of it, among the bases.

  A group is one sequence, over which capacity is counted: with a capacity factor, slots are filled by position; None is
  dropless.
  """

  def is_causal(self, *, training: bool) -> bool:
    return True

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return True

  def groups(self, batch: int, length: int, *, training: bool = True) -> Groups:
    return Groups(length)


class TokenwiseRouter(Router):
  """Base class: a method adds `select`. A layer costs as much as its slots, or (dropless) as its assignments on a CPU,
  and elsewhere as the matrix products of these and passes over `Selection.most` rows per token, or over 2.5 at a time.
  """

  config: CapacityConfig

  def select(self, inputs: RouterInput, *, training: bool) -> Selection:
    """Decides on all tokens of `inputs`."""
    raise NotImplementedError

  def select_next(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[Selection, dict[str, jax.Array]]:
    """Decides on one token of each sequence, in evaluation; overridden by routers that remember earlier tokens."""
    return self.select(inputs, training=False), state

  def init_memory(self, batch: int, length: int) -> dict[str, jax.Array]:
    """What `select_next` remembers of earlier tokens; the first axis of every array is `batch`."""
    return {}

  def capacity(self, length: int, *, training: bool) -> int | None:
    """Slots per expert for a sequence of `length` tokens; None for dropless."""
    factor = self.config.factor(training)
    return None if factor is None else token_choice_capacity(length, self.num_experts, factor)

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    selection = self.select(inputs, training=training)
    chosen = selection.chosen & inputs.mask[..., None]
    routing = self._routing(chosen, selection, training)
    metrics = routing_metrics(routing, inputs.mask, selection.probs, asked=chosen.sum())
    auxiliary_loss = jnp.asarray(selection.auxiliary_loss, jnp.float32)
    return RouterOutput(routing, selection.losses, auxiliary_loss, metrics, selection.policy, selection.seen)

  def _routing(self, chosen: jax.Array, selection: Selection, training: bool) -> Routing:
    capacity = self.capacity(chosen.shape[1], training=training)
    if capacity is None:
      return jax.vmap(lambda c, w: queues.ragged_of_chosen(c, w, selection.most))(chosen, selection.weight)
    return jax.vmap(lambda c, w: queues.slots_of_chosen(c, w, capacity))(chosen, selection.weight)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """`init_memory`, and unless dropless `free`, int32 `[batch, E]`: the slots left."""
    state, capacity = self.init_memory(batch, length), self.capacity(length, training=False)
    if capacity is not None:
      state = state | {"free": jnp.full((batch, self.num_experts), capacity, jnp.int32)}
    return state

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """See the base class. The routing is ragged, since single tokens would leave slots empty."""
    if not self.config.is_causal(training=False):
      return super().decode(inputs, state)
    selection, state = self.select_next(inputs, state)
    chosen = selection.chosen[0] & inputs.mask[0][:, None]
    if "free" in state:
      chosen = chosen & (state["free"] > 0)
      state = state | {"free": state["free"] - chosen}
    routing = queues.ragged_of_chosen(chosen, selection.weight[0], selection.most)
    routing = jax.tree.map(lambda leaf: leaf[None], routing)
    return RouterOutput(routing, {}, jnp.zeros(()), {}), state


def require_room_for_all(config: CapacityConfig, num_experts: int, *, training: bool) -> None:
  """Checks that a router can send every token to every expert.

  Raises:
    ConfigError: the router has slots in this mode, but too few for that.
  """
  factor = config.factor(training)
  separate = not training and config.eval_capacity_factor is not None
  require(
    factor is None or factor >= num_experts,
    "eval_capacity_factor" if separate else "capacity_factor",
    factor,
    f"every token goes to all {num_experts} experts: expected at least {num_experts}, or None (dropless)",
  )
