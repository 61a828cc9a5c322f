"""Balanced assignment: every token to one expert, every expert equally many, the largest sum of scores.

The training-time routing of BASE layers (Lewis et al. 2021, arXiv 2103.16716, section 3.1), there solved by an auction
over tokens. With far fewer experts than tokens it is better seen from the experts' side: the dual has one price for
each expert, and an assignment is optimal when no cycle of experts gains by handing tokens round. So prices are found
first by smoothed descent, tokens go where they pay most, the few that do not fit are put anywhere, and cycles are
cancelled until none gains. That ends exactly, in float32, and proves it: the prices it ends with bound the optimum.

Only comparisons with prices matter, so all of this takes scores less a constant for each token and each expert.
"""

import typing

import jax
import jax.numpy as jnp

from moe.routing.queues import queue_by_priority, slot_routing
from moe.routing.solvers.highest import highest
from moe.routing.solvers.mean_cycle import max_mean_cycle

# Temperatures of the smoothed dual, in units of the mean regret: from one that all tokens feel to one that few do.
_FIRST_TEMPERATURE, _LAST_TEMPERATURE, _TEMPERATURES = 1.0, 1e-3, 12


class BalancedAssignment(typing.NamedTuple):
  """An assignment and the proof of how good it is.

  Attributes:
    expert: int32 `[n]`, the expert of each token; E for padding.
    price: float32 `[E]`, at least 0, the cheapest 0.
    value: float32 scalar, sum over real tokens of the score with their expert.
    gap: float32 scalar, at least 0: `value + gap` is the dual objective at these prices, which no assignment exceeds.
  """

  expert: jax.Array
  price: jax.Array
  value: jax.Array
  gap: jax.Array


def balanced_assignment(scores: jax.Array, mask: jax.Array, max_exchanges: int = 1000) -> BalancedAssignment:
  """The assignment of m real tokens that maximises the sum of scores with at most ceil(m / E) tokens an expert.

  If E divides m every expert gets exactly m / E; otherwise fewer than E places stay empty, where it costs least.
  The dual objective is `sum_t max_e(score[t, e] - price[e]) + ceil(m / E) * sum_e price[e]`. It is balanced
  however early it stops, and the gap then says what that cost. Of equal choices the lower index is taken, so results
  repeat; which of several optima is found may hang on rounding, and so differ under `jax.vmap`.

  Args:
    scores: `[n, E]`; those that are not finite count as the smallest finite one, as in fairseq.
    mask: bool `[n]`, False for padding.
    max_exchanges: cycles that may be cancelled. Tens are needed, a few hundred if scores are small integers.
  """
  n, num_experts = scores.shape
  scores = _finite(scores.astype(jnp.float32), mask)
  room = (mask.sum() + num_experts - 1) // num_experts
  # An empty place is an n-th token that scores 0 with all. There are as many as complete a multiple of E.
  weight = jnp.append(mask, 0).astype(jnp.float32).at[n].set(num_experts * room - mask.sum())
  mean = (scores * mask[:, None]).sum(0) / jnp.maximum(mask.sum(), 1)
  centred = jnp.append(scores, jnp.zeros((1, num_experts)), axis=0) - mean
  centred = centred - centred.max(1, keepdims=True)

  price = _smoothed_prices(centred, weight, room)
  table = _first_table(centred[:n] - price, mask, room)
  table, price = _exchanged(table, price, centred, room, max_exchanges)

  of_row = jnp.broadcast_to(jnp.arange(num_experts)[:, None], table.shape)
  expert = jnp.full(n + 1, num_experts).at[table].set(of_row)[:n]
  expert = jnp.where(mask, expert, num_experts)
  price = price + mean
  return _certified(scores, expert, price - price.min(), mask, room)


def _finite(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Scores `[n, E]` with 0 for padding, and the smallest finite one (0 without any) for what is not finite."""
  finite = jnp.isfinite(scores)
  smallest = jnp.where(finite & mask[:, None], scores, jnp.inf).min()
  smallest = jnp.where(jnp.isfinite(smallest), smallest, 0.0)
  return jnp.where(mask[:, None], jnp.where(finite, scores, smallest), 0.0)


def _smoothed_prices(scores: jax.Array, weight: jax.Array, room: jax.Array) -> jax.Array:
  """Prices `[E]` that nearly balance the experts: the dual with a softmax for the maximum, ever sharper.

  At each temperature one Sinkhorn step, which cannot go astray, and one Newton step on the E prices, which converges.

  Args:
    scores: float32 `[N, E]`, the highest of each row 0.
    weight: float32 `[N]`, how many tokens a row stands for.
    room: int32 scalar, tokens an expert should get.
  """
  num_experts = scores.shape[1]
  target = jnp.maximum(room, 1).astype(jnp.float32)
  regret = -(scores * weight[:, None]).sum() / (num_experts * jnp.maximum(weight.sum(), 1))

  def shares(price: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    share = jax.nn.softmax((scores - price) / temperature)
    return share, weight @ share

  def step(price: jax.Array, temperature: jax.Array) -> tuple[jax.Array, None]:
    _, load = shares(price, temperature)
    price += temperature * jnp.log(jnp.maximum(load / target, 1e-3))
    share, load = shares(price, temperature)
    # The Hessian of the dual times temperature; the addition covers its null space and experts that nothing reaches.
    hessian = jnp.diag(load + 1e-3 * target) - share.T @ (weight[:, None] * share)
    change = jnp.linalg.solve(hessian, load - target)
    # The quadratic model holds for changes of a few temperatures.
    return price + temperature * change * jnp.minimum(1.0, 4 / jnp.maximum(jnp.abs(change).max(), 1.0)), None

  scale = jnp.where(regret > 0, regret, 1.0)
  temperatures = scale * jnp.geomspace(_FIRST_TEMPERATURE, _LAST_TEMPERATURE, _TEMPERATURES)
  price = jax.lax.scan(step, jnp.zeros(num_experts), temperatures)[0]
  # Where no expert is preferred, rounding alone would choose.
  return jnp.where(regret > 0, price, 0.0)


def _first_table(net: jax.Array, mask: jax.Array, room: jax.Array) -> jax.Array:
  """int32 `[E, C]`, C = ceil(n / E): the tokens of each expert in its first `room` slots, n in empty ones.

  Experts take the tokens that like them best in the order of what those would lose elsewhere; tokens that find no room
  are put into free slots as they come, for the exchanges to sort out.

  Args:
    net: float32 `[n, E]`, scores less prices.
    mask: bool `[n]`.
    room: int32 scalar, slots in use.
  """
  n, num_experts = net.shape
  capacity = -(-n // num_experts)
  best, choice = highest(net, min(2, num_experts))
  choice, wanted = choice[:, :1], mask[:, None]
  place = queue_by_priority(choice, wanted, best[:, 0] - best[:, -1], num_experts)
  seated = wanted & (place < room)
  table = slot_routing(choice, best[:, :1], seated, place, num_experts, capacity).token
  left = jnp.argsort((seated | ~wanted)[:, 0], stable=True).astype(jnp.int32)
  free = (table == n) & (jnp.arange(capacity) < room)
  rank = jnp.cumsum(free.reshape(-1)).reshape(free.shape) - 1
  return jnp.where(free & (rank < (wanted & ~seated).sum()), left[rank], table)


def _exchanged(
  table: jax.Array, price: jax.Array, scores: jax.Array, room: jax.Array, max_exchanges: int
) -> tuple[jax.Array, jax.Array]:
  """The table `[E, C]` after exchanges along cycles of experts, until none gains, and the prices `[E]` that show it.

  Along the cycle of largest mean gain each expert hands on not one token but as many as gain together, so that
  thousands of equal tokens take one exchange.
  """
  num_experts, capacity = table.shape
  in_use = (jnp.arange(capacity) < room)[:, None] | jnp.eye(num_experts, dtype=bool)[:, None, :]
  # What E additions of float32 scores may be wrong by; a smaller gain may be none.
  least_gain = num_experts * jnp.finfo(jnp.float32).eps * jnp.abs(scores).max()

  def exchange(state: tuple) -> tuple:
    table, _, _, count = state
    scored = scores[table]
    gain = jnp.where(in_use, scored - jnp.diagonal(scored, axis1=0, axis2=2).T[..., None], -jnp.inf)
    following, _, potential = max_mean_cycle(gain.max(1))
    along = jnp.take_along_axis(gain, following[:, None, None], axis=2)[..., 0]
    loss, table = jax.lax.sort((-along, table), num_keys=1)
    gains = loss.sum(0) < -least_gain
    preceding = jnp.argsort(following)
    return jnp.where(gains, table[preceding], table), potential, gains[0], count + 1

  def going_on(state: tuple) -> jax.Array:
    return state[2] & (state[3] < max_exchanges)

  return jax.lax.while_loop(going_on, exchange, (table, price, jnp.array(True), 0))[:2]


def _certified(
  scores: jax.Array, expert: jax.Array, price: jax.Array, mask: jax.Array, room: jax.Array
) -> BalancedAssignment:
  """The result with its value and gap, the latter as a sum of terms of which none is negative."""
  of_token = jnp.minimum(expert, scores.shape[1] - 1)[:, None]
  net = scores - price
  regret = net.max(1) - jnp.take_along_axis(net, of_token, axis=1)[:, 0]
  load = jnp.zeros_like(price).at[expert].add(1.0, mode="drop")
  gap = (regret * mask).sum() + ((room - load) * price).sum()
  value = (jnp.take_along_axis(scores, of_token, axis=1)[:, 0] * mask).sum()
  return BalancedAssignment(expert.astype(jnp.int32), price, value, gap)
