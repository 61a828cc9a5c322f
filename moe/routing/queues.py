"""From "this token wants that expert" to a `Routing`, in O(n * k) memory for indices and `[n, E]` for counting.

All functions work on one group; `jax.vmap` adds the axis G. A *choice* is one expert chosen by one token; `wanted`
marks the choices that take part (not those of padding), `ahead` counts the choices before each in its expert's queue.
"""

import jax
import jax.numpy as jnp

from moe.routing.types import RaggedRouting, SlotRouting


def queue_by_position(choices: jax.Array, wanted: jax.Array, num_experts: int) -> jax.Array:
  """int32 `[n, k]`, how many choices are ahead of each when tokens queue by position with all their choices.

  Later tokens never matter, so capacity counted this way is causal. Neither does the order among a token's choices,
  which are of different experts: one cumulative sum over tokens serves all k.

  Args:
    choices: int32 `[n, k]`, different experts for each token.
    wanted: bool `[n, k]`.
    num_experts: E.
  """
  takes = wanted_experts(choices, wanted, num_experts)
  return jnp.take_along_axis(jnp.cumsum(takes, axis=0) - takes, choices, axis=1)


def queue_by_choice(choices: jax.Array, wanted: jax.Array, num_experts: int) -> jax.Array:
  """int32 `[n, k]`, how many choices are ahead of each in GShard's queue (Lepikhin et al. 2020, algorithm 1).

  All first choices queue by position, then all second ones, and so on. A later token's first choice is ahead of an
  earlier token's second, so with more than one choice per token it is not causal.

  Args:
    choices: int32 `[n, k]`, different experts for each token, best first.
    wanted: bool `[n, k]`.
    num_experts: E.
  """
  n, k = choices.shape
  ahead = queue_by_position(choices.T.reshape(k * n, 1), wanted.T.reshape(k * n, 1), num_experts)
  return ahead.reshape(k, n).T


def queue_by_priority(choices: jax.Array, wanted: jax.Array, priority: jax.Array, num_experts: int) -> jax.Array:
  """int32 `[n, k]`, how many choices are ahead of each in V-MoE's batch priority (Riquelme et al. 2021, algorithm 2).

  As `queue_by_choice`, but tokens queue by decreasing priority instead of by position. Not causal.

  Args:
    choices: int32 `[n, k]`, different experts for each token, best first.
    wanted: bool `[n, k]`.
    priority: float32 `[n]`, highest is served first, ties by position.
    num_experts: E.
  """
  order = jnp.argsort(-priority, stable=True)
  ahead = queue_by_choice(choices[order], wanted[order], num_experts)
  return jnp.zeros_like(ahead).at[order].set(ahead, unique_indices=True)


def queue_each_by_priority(choices: jax.Array, wanted: jax.Array, priority: jax.Array, num_experts: int) -> jax.Array:
  """int32 `[n, k]`, how many choices are ahead of each where every single choice has a priority of its own.

  With scores as priorities, each expert keeps the tokens that score highest with it, as in DeepSpeed's policy "probs".

  Args:
    choices: int32 `[n, k]`, different experts for each token.
    wanted: bool `[n, k]`.
    priority: float32 `[n, k]`, highest is served first, ties by position.
    num_experts: E.
  """
  alone = queue_by_priority(choices.reshape(-1, 1), wanted.reshape(-1, 1), priority.reshape(-1), num_experts)
  return alone.reshape(choices.shape)


def slot_routing(
  choices: jax.Array, weight: jax.Array, wanted: jax.Array, ahead: jax.Array, num_experts: int, capacity: int
) -> SlotRouting:
  """The first `capacity` wanted choices in each expert's queue, `[E, C]`; the rest are dropped.

  Args:
    choices: int32 `[n, k]`.
    weight: float32 `[n, k]`; the gradient flows through it.
    wanted: bool `[n, k]`.
    ahead: int32 `[n, k]`, from one of the functions above.
    num_experts: E.
    capacity: C.
  """
  n, k = choices.shape
  assignment = jnp.arange(n * k, dtype=jnp.int32)
  kept = wanted & (ahead < capacity)
  slot = jnp.where(kept, choices * capacity + ahead, num_experts * capacity).reshape(-1)
  # Dropped choices get distinct slots past the end, to keep the promise of unique indices.
  slot = jnp.where(kept.reshape(-1), slot, slot + assignment)
  table = jnp.full(num_experts * capacity, n * k, jnp.int32)
  table = table.at[slot].set(assignment, mode="drop", unique_indices=True).reshape(num_experts, capacity)
  return SlotRouting(table // k, weight.reshape(-1).at[table].get(mode="fill", fill_value=0.0))


def ragged_routing(choices: jax.Array, weight: jax.Array, wanted: jax.Array, num_experts: int) -> RaggedRouting:
  """All wanted choices sorted by expert, then by token; the others fill the tail as token n with weight 0.

  Args:
    choices: int32 `[n, k]`.
    weight: float32 `[n, k]`; the gradient flows through it.
    wanted: bool `[n, k]`.
    num_experts: E.
  """
  n, k = choices.shape
  expert = jnp.where(wanted, choices, num_experts).reshape(-1)
  order = jnp.argsort(expert, stable=True)
  real = expert[order] < num_experts
  token = jnp.where(real, order // k, n).astype(jnp.int32)
  group_sizes = wanted_experts(choices, wanted, num_experts).sum(0, dtype=jnp.int32)
  return RaggedRouting(token, jnp.where(real, weight.reshape(-1)[order], 0.0), group_sizes)


def slots_of_chosen(chosen: jax.Array, weight: jax.Array, capacity: int) -> SlotRouting:
  """The first `capacity` tokens by position that chose each expert, `[E, C]`; causal.

  Args:
    chosen: bool `[n, E]`, any number of experts per token.
    weight: float32 `[n, E]`; the gradient flows through it.
    capacity: C.
  """
  n, num_experts = chosen.shape
  ahead = jnp.cumsum(chosen, axis=0, dtype=jnp.int32) - 1
  expert, token = jnp.arange(num_experts), jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], chosen.shape)
  slot = jnp.where(chosen & (ahead < capacity), expert * capacity + ahead, num_experts * capacity)
  table = jnp.full(num_experts * capacity, n, jnp.int32).at[slot].set(token, mode="drop")
  table = table.reshape(num_experts, capacity)
  return SlotRouting(table, weight.at[table, expert[:, None]].get(mode="fill", fill_value=0.0))


def ragged_of_chosen(chosen: jax.Array, weight: jax.Array, most: int | None = None) -> RaggedRouting:
  """All chosen pairs sorted by expert, then by token; A = n * most, of which what is not chosen is an empty tail.

  Args:
    chosen: bool `[n, E]`, at most `most` experts per token.
    weight: float32 `[n, E]`; the gradient flows through it.
    most: None for all E.
  """
  n, num_experts = chosen.shape
  size = n * (num_experts if most is None else min(most, num_experts))
  flat = jnp.nonzero(chosen.T.reshape(-1), size=size, fill_value=n * num_experts)[0]
  real = flat < n * num_experts
  token = jnp.where(real, flat % n, n).astype(jnp.int32)
  gathered = weight.at[token, flat // n].get(mode="fill", fill_value=0.0)
  return RaggedRouting(token, gathered, chosen.sum(0, dtype=jnp.int32))


def wanted_experts(choices: jax.Array, wanted: jax.Array, num_experts: int) -> jax.Array:
  """int32 `[n, E]`, 1 where a token wants an expert."""
  return ((choices[..., None] == jnp.arange(num_experts)) & wanted[..., None]).sum(1, dtype=jnp.int32)
