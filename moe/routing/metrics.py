"""Metrics of a routing, small enough to log for every layer and step. O(assignments)."""

import jax
import jax.numpy as jnp

from moe.routing.types import RaggedRouting, Routing, SlotRouting, SoftRouting

MOST_EXPERTS_COUNTED = 5


def routing_metrics(
  routing: Routing,
  mask: jax.Array,
  probs: jax.Array | None = None,
  *,
  asked: jax.Array | None = None,
  free: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Float32 metrics of one layer, over all its groups; no gradient.

  Args:
    routing: any kind.
    mask: bool `[G, n]`, False for padding.
    probs: float32 `[G, n, E]`, the router's probabilities, or None for a router that has none.
    asked: scalar, how many assignments the real tokens asked for before capacity dropped any; None if tokens do not ask
      (expert choice, soft).
    free: float32 `[G, n, Z]`, gates of the experts that cost nothing, or None; no other metric counts these.

  Returns:
    load: `[E]`, share of the assignments that each expert received, summing to 1.
    load_max: largest over mean load; 1 when balanced, E when one expert gets all.
    load_cv: standard deviation over mean of the load; 0 when balanced.
    dropped: share of the asked-for assignments that found no slot; if `asked` is None, share of the real tokens that no
      expert took.
    experts_per_token: `[6]`, share of the real tokens with 0, 1, 2, 3, 4 and more experts.
    capacity_factor: the work that is done: rows that the experts compute per real token. These are all slots, filled or
      empty, and of a dropless routing, which has no slots, its assignments. Without padding and dropping nothing, the
      config's, rounded to whole slots.
    assignments: the work that is of use: experts per real token on average (soft: slots per real token).
    gate_entropy: mean over real tokens of the entropy of `probs`, in nats; left out without `probs`.
    free_share: share of all assignments that went to the experts that cost nothing; left out without `free`.
  """
  routing, probs, free = jax.lax.stop_gradient((routing, probs, free))
  real = jnp.maximum(mask.sum(), 1).astype(jnp.float32)
  n = mask.shape[1]
  per_expert, per_token = _expert_loads(routing, n), _experts_of_tokens(routing, n)
  load = per_expert / jnp.maximum(per_expert.sum(), 1)
  bins = jnp.minimum(per_token, MOST_EXPERTS_COUNTED)[..., None] == jnp.arange(MOST_EXPERTS_COUNTED + 1)
  experts_per_token = (bins & mask[..., None]).sum((0, 1)) / real
  if asked is None:
    dropped = experts_per_token[0]
  else:
    dropped = (asked - per_expert.sum()) / jnp.maximum(asked, 1)
  metrics = {
    "load": load,
    "load_max": load.max() * load.size,
    "load_cv": load.std() * load.size,
    "dropped": jnp.where(mask.any(), dropped, 0.0),
    "experts_per_token": experts_per_token,
    "capacity_factor": _rows(routing) / real,
    "assignments": per_expert.sum() / real,
  }
  if probs is not None:
    metrics["gate_entropy"] = (jax.scipy.special.entr(probs).sum(-1) * mask).sum() / real
  if free is not None:
    taken = (free > 0).sum()
    metrics["free_share"] = taken / jnp.maximum(taken + per_expert.sum(), 1)
  return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}


def _expert_loads(routing: Routing, n: int) -> jax.Array:
  """`[E]`, assignments of each expert; for soft routing the total dispatch weight of its slots."""
  if isinstance(routing, SlotRouting):
    # The token marks an empty slot, not the weight, which may underflow to 0 for a real assignment.
    return (routing.token < n).sum((0, 2))
  return routing.group_sizes.sum(0) if isinstance(routing, RaggedRouting) else routing.dispatch.sum((0, 1, 3))


def _experts_of_tokens(routing: Routing, n: int) -> jax.Array:
  """int32 `[G, n]`, how many experts each token reached."""
  if isinstance(routing, SoftRouting):
    return (routing.combine > 0).any(-1).sum(-1)
  tokens = routing.token.reshape(routing.token.shape[0], -1)
  return jax.vmap(lambda token: jnp.zeros(n, jnp.int32).at[token].add(1, mode="drop"))(tokens)


def _rows(routing: Routing) -> float | jax.Array:
  """How many rows the experts compute."""
  match routing:
    case SlotRouting():
      return float(routing.token.size)
    case RaggedRouting():
      return routing.group_sizes.sum()
    case SoftRouting():
      groups, _, experts, slots = routing.dispatch.shape
      return float(groups * experts * slots)
