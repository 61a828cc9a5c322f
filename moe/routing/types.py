"""The types of routing: which token goes to which expert, and with what weight.

Axis names, used in every shape comment:

  G  routing groups          n  tokens of one group        d  model width
  E  experts                 C  slots of an expert         k  experts per token, or tokens per expert where stated
  B  sequences in a batch    T  positions of a sequence    f  hidden width of an expert
  A  assignments, n * k      P  slots of an expert in soft routing

A routing group is the set of tokens that one decision is made over. The config sets its size, never the number of
devices, so a config gives the same numbers on any mesh.
"""

import dataclasses

import jax

from moe.routing.policy import Policy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotRouting:
  """Every expert has C slots, each holding one token of the group or nothing.

  Attributes:
    token: int32 `[G, E, C]`, index into the group; `n` marks an empty slot.
    weight: float32 `[G, E, C]`, what the expert's output is multiplied by; 0 in an empty slot.
  """

  token: jax.Array
  weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RaggedRouting:
  """Dropless: every assignment is kept, and experts take as many tokens as they are assigned.

  Attributes:
    token: int32 `[G, A]`, sorted by expert within a group; `n` in the unused tail.
    weight: float32 `[G, A]`; 0 in the tail.
    group_sizes: int32 `[G, E]`, assignments of each expert; their sum is at most A.
  """

  token: jax.Array
  weight: jax.Array
  group_sizes: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftRouting:
  """Every slot is a mixture of tokens and every token a mixture of slots.

  Attributes:
    dispatch: float32 `[G, n, E, P]`, weight of a token in a slot's input.
    combine: float32 `[G, n, E, P]`, weight of a slot's output in a token's output.
  """

  dispatch: jax.Array
  combine: jax.Array


Routing = SlotRouting | RaggedRouting | SoftRouting


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterInput:
  """What a router may read; everything except `tokens` and `mask` is optional.

  Attributes:
    tokens: `[G, n, d]`, any float dtype.
    mask: bool `[G, n]`, False for padding.
    ids: int32 `[G, n]` token ids, or None (vision).
    positions: int32 `[G, n]` position within the token's own sequence, or None.
    key: PRNG key for this layer and step, or None if nothing may be random.
    length: T, tokens of a row of the batch that was cut into groups, or None.
  """

  tokens: jax.Array
  mask: jax.Array
  ids: jax.Array | None = None
  positions: jax.Array | None = None
  key: jax.Array | None = None
  length: int | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterOutput:
  """A router's decision.

  Attributes:
    routing: the `Routing`.
    losses: float32 scalars by name, unweighted, for this layer only, over real tokens.
    auxiliary_loss: float32 scalar, the weighted sum that training adds to the cross-entropy.
    metrics: float32 arrays by name (`moe.routing.metrics`).
    policy: in training, from a router that learns from the loss its choices lead to; else None.
    seen: in training, what `Router.learn` moves the state by; {} if there is nothing to move.
    free: float32 `[G, n, Z]`, the gates of experts that cost nothing (`RouterConfig.free_experts`); None without any.
  """

  routing: Routing
  losses: dict[str, jax.Array]
  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  policy: Policy | None = None
  seen: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  free: jax.Array | None = None
