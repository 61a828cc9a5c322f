"""The rank of each token's score among the earlier tokens of its sequence, in O(n log n) per expert."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Earlier:
  """Counts of the tokens before each one. Padding is never counted, and its own entries are meaningless.

  Attributes:
    above: int32 `[n, E]`, the earlier tokens that scored higher.
    equal: int32 `[n, E]`, the earlier tokens that scored the same.
    count: int32 `[n]`, the earlier tokens.
  """

  above: jax.Array
  equal: jax.Array
  count: jax.Array


def rank_among_earlier(scores: jax.Array, mask: jax.Array, positions: jax.Array) -> Earlier:
  """The ranks of one row, which may hold several sequences packed one after the other.

  Tokens are sorted by decreasing score, later sequences first. The tokens before a token in this order that are also
  earlier in time are then those of its own sequence that score at least as high: `earlier_before` counts them. Equal
  scores are sorted by time, so those before it in a run of equals are the earlier ones.

  Args:
    scores: float32 `[n, E]`.
    mask: bool `[n]`, False for padding.
    positions: int32 `[n]`, position of each token within its sequence.
  """
  n, num_experts = scores.shape
  time = jnp.arange(n, dtype=jnp.int32)
  start = jnp.clip(time - positions, 0, time)
  sequence = jnp.broadcast_to(jnp.where(mask, -start, 1), (num_experts, n))
  keys = (sequence, -scores.T, jnp.broadcast_to(time, (num_experts, n)))
  sequence, negated, order = jax.lax.sort(keys, num_keys=2, is_stable=True)
  in_run = (sequence[:, 1:] == sequence[:, :-1]) & (negated[:, 1:] == negated[:, :-1])
  run_start = jax.lax.cummax(jnp.where(jnp.pad(in_run, ((0, 0), (1, 0))), 0, time), axis=1)
  equal = jax.vmap(lambda order, equal: jnp.zeros_like(equal).at[order].set(equal, unique_indices=True))(
    order, time - run_start
  )
  real = jnp.cumsum(mask, dtype=jnp.int32) - mask
  return Earlier((jax.vmap(earlier_before)(order) - equal).T, equal.T, real - real[start])


def earlier_before(order: jax.Array) -> jax.Array:
  """int32 `[n]`: how many of the times before i precede i in `order`, a permutation of 0 to n - 1.

  Quicksort by time, all segments of a level at once: each segment is split stably into its earlier and its later half,
  and each member of the later half counts the members of the earlier half that preceded it. Any two times are separated
  exactly once.
  """
  n = len(order)
  levels = (n - 1).bit_length()
  size = 1 << levels  # so that segments halve evenly; the added times come last and are never counted
  index = jnp.arange(size, dtype=jnp.int32)

  def split(level: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    order, count = state
    half = jnp.right_shift(size, level + 1)
    late = (order & half) > 0
    start = index & -2 * half
    early = (~late).astype(jnp.int32)
    # Half of every segment before this one is early, hence start / 2.
    before = jnp.cumsum(early) - early - start // 2
    to = jnp.where(late, half + index - before, start + before)

    def moved(values: jax.Array) -> jax.Array:
      return jnp.zeros_like(values).at[to].set(values, unique_indices=True)

    return moved(order), moved(count + jnp.where(late, before, 0))

  order = jnp.concatenate([order, jnp.arange(n, size, dtype=jnp.int32)])
  return jax.lax.fori_loop(0, levels, split, (order, jnp.zeros(size, jnp.int32)))[1][:n]
