"""Capped expert choice: experts take k tokens each, but no token goes to more than b. Zhou et al. 2022, section 3.3.

    max_A <S^T, A> + lam H(A),  A [E, n]:  row sums k (experts),  column sums <= b (tokens),  0 <= A <= 1

with H(A) = -sum A log A, after which every expert takes the k tokens of its largest A. There are three solvers: the
paper's (Dykstra's projections), the dual of the same program (which converges in an affordable number of iterations),
and deferred acceptance, the only one that never exceeds the cap. The first two return log A: at the paper's lam most
entries of A underflow, and an expert whose row is not yet full would choose among equal zeros.

All k E choices fit only if k E <= b n, that is, if the capacity factor is at most b. All functions work on one group
and have no gradient; the weights of the chosen tokens are their scores, which the caller gathers.
"""

import math

import jax
import jax.numpy as jnp

from moe.routing.solvers.highest import highest

# Halvings of an interval about as wide as the scores' range, down to a millionth of it: far below any useful lam.
_BISECTIONS = 20


def dykstra_plan(
  scores: jax.Array, mask: jax.Array, k: jax.Array | int, b: int, lam: float = 0.001, iterations: int = 100
) -> jax.Array:
  """float32 `[E, n]`: log A after rounds of Dykstra's projections in Kullback-Leibler divergence, as published.

  From exp(S^T / lam), in turn: rows are scaled to k, columns scaled down to b, entries clipped at 1; the last two first
  undo their correction of the previous round. At the paper's lam, 100 rounds are far from convergence: rows are not
  full, and after rounding many tokens exceed the cap.

  Args:
    scores: float32 `[n, E]`, softmax over experts.
    mask: bool `[n]`, False for padding, whose columns are -inf.
    k: tokens per expert.
    b: experts per token, at most.
    lam: weight of the entropy, in units of the scores.
    iterations: rounds.
  """

  def projections(_, state: tuple) -> tuple:
    log_plan, column, entry = state
    log_plan += jnp.log(jnp.maximum(k, 1)) - jax.nn.logsumexp(log_plan, axis=1, keepdims=True)
    log_plan += column
    shift = jnp.minimum(0.0, math.log(b) - jax.nn.logsumexp(log_plan, axis=0))
    log_plan += shift + entry
    return jnp.minimum(log_plan, 0.0), -shift, jnp.maximum(log_plan, 0.0)

  log_plan = jnp.where(mask, scores.T / lam, -jnp.inf)
  state = (log_plan, jnp.zeros(scores.shape[0]), jnp.zeros_like(log_plan))
  return jnp.where(mask, jax.lax.fori_loop(0, iterations, projections, state)[0], -jnp.inf)


def two_block_plan(
  scores: jax.Array, mask: jax.Array, k: jax.Array | int, b: int, lam: float = 0.001, iterations: int = 20
) -> jax.Array:
  """float32 `[E, n]`: log A of the same program, min(0, (S^T + u - v) / lam), by block ascent in its dual.

  u `[E]` gives rows the sum k, v `[n]` >= 0 lowers columns to b. Each is solved exactly given the other, by bisection
  for all rows or columns at once. The bound on entries needs no iterations of its own, which makes this much faster
  than the projections. Columns sum to at most b, rows to nearly k.

  Args:
    scores: float32 `[n, E]`, softmax over experts.
    mask: bool `[n]`, False for padding, whose columns are -inf.
    k: tokens per expert; if fewer are real, all of them are taken.
    b: experts per token, at most.
    lam: weight of the entropy, in units of the scores.
    iterations: alternations.
  """
  n, num_experts = scores.shape
  of_experts = jnp.where(mask, scores.T, -jnp.inf)

  def alternation(_, duals: tuple) -> tuple:
    _, v = duals
    u = _level(of_experts - v, k, lam)
    return u, jnp.maximum(0.0, -_level(scores + u, b, lam))

  u, v = jax.lax.fori_loop(0, iterations, alternation, (jnp.zeros(num_experts), jnp.zeros(n)))
  return jnp.where(mask, jnp.minimum((of_experts + u[:, None] - v) / lam, 0.0), -jnp.inf)


def top_tokens(log_plan: jax.Array, k: int, taken: jax.Array | int | None = None) -> jax.Array:
  """int32 `[E, k]`: TopK(A, k), the tokens each expert takes, largest first; n where only padding is left.

  Args:
    log_plan: float32 `[E, n]`, log A; -inf for padding only.
    k: slots per expert.
    taken: tokens per expert, which fill the first slots; None for k.
  """
  value, token = highest(log_plan, k)
  empty = value == -jnp.inf if taken is None else (value == -jnp.inf) | (jnp.arange(k) >= taken)
  return jnp.where(empty, log_plan.shape[1], token)


def deferred_acceptance(
  scores: jax.Array,
  mask: jax.Array,
  k: int,
  b: int,
  max_rounds: int = 100,
  taken: jax.Array | int | None = None,
) -> jax.Array:
  """int32 `[E, k]`: the tokens each expert takes, n in slots that stay empty. No token is taken more than b times.

  Gale and Shapley 1962 with experts proposing: each proposes to the k tokens that score highest with it and have not
  refused it; a token keeps the b experts it scores highest with and refuses the others. The result is stable: no expert
  and token that are not matched would both prefer to be. Since both rank by the same score, it equals serving all pairs
  in decreasing order of score. Slots stay empty if an expert has no one left to ask, or if it is refused in the last of
  `max_rounds`. A few rounds suffice for b above the capacity factor. If they are equal, every token ends at the cap,
  which takes hundreds, but after one hundred less than 1% of the slots are empty.

  Args:
    scores: float32 `[n, E]`, finite.
    mask: bool `[n]`, False for padding.
    k: slots per expert.
    b: experts per token, at most.
    max_rounds: bound on the rounds; at least 1.
    taken: tokens per expert, at most k; None for k. The other slots stay empty.
  """
  n, num_experts = scores.shape
  experts = jnp.arange(num_experts)

  def one_round(state: tuple) -> tuple:
    refused, _, _, count = state
    token = top_tokens(jnp.where(refused, -jnp.inf, scores).T, k, taken)
    offered = jnp.zeros((n, num_experts), bool).at[token, experts[:, None]].set(True, mode="drop")
    liked = highest(jnp.where(offered, scores, -jnp.inf), min(b, num_experts))[1]
    kept = offered & (liked[..., None] == experts).any(1)
    accepted = kept.at[token, experts[:, None]].get(mode="fill", fill_value=False)
    return refused | (offered & ~kept), jnp.where(accepted, token, n), (offered & ~kept).any(), count + 1

  def unfinished(state: tuple) -> jax.Array:
    return state[2] & (state[3] < max_rounds)

  refused = jnp.broadcast_to(~mask[:, None], scores.shape)
  state = (refused, jnp.full((num_experts, k), n, jnp.int32), jnp.array(True), 0)
  return jax.lax.while_loop(unfinished, one_round, state)[1]


def _level(values: jax.Array, total: jax.Array | int, lam: float) -> jax.Array:
  """`[R]`: the x of each row with sum min(1, exp((values + x) / lam)) = total, or a larger sum if no x gives less.

  Args:
    values: float32 `[R, N]`; -inf where nothing can be taken.
    total: the target sum; all entries are 1 if there are fewer.
    lam: temperature, in units of the values.
  """
  low = lam * jnp.log(jnp.maximum(total, 1) / values.shape[1]) - values.max(1)
  high = -jnp.where(jnp.isfinite(values), values, jnp.inf).min(1)

  def halve(_, interval: tuple) -> tuple:
    low, high = interval
    middle = (low + high) / 2
    enough = jnp.exp(jnp.minimum((values + middle[:, None]) / lam, 0.0)).sum(1) >= total
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  return sum(jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))) / 2
