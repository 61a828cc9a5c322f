"""Balanced assignment: each token to one expert, equally many tokens per expert, the largest sum of scores.

The training-time routing of BASE layers (Lewis et al. 2021, arXiv 2103.16716, section 3.1), solved there by an auction
over tokens. With far fewer experts than tokens the experts' side is easier: the dual has one price per expert, and an
assignment is optimal when no cycle of experts gains by passing tokens around. So prices are first found by smoothed
descent, tokens go where score minus price is highest, the few that do not fit are placed arbitrarily, and cycles are
cancelled until none gains. The result is exact in float32, and certified: the final prices bound the optimum.

Only comparisons with prices matter, so a constant per token and per expert is subtracted from all scores.
"""

import typing

import jax
import jax.numpy as jnp

from moe.routing.queues import queue_by_priority, slot_routing
from moe.routing.solvers.highest import highest
from moe.routing.solvers.mean_cycle import max_mean_cycle

# Temperatures of the smoothed dual, in units of the mean regret: the first affects all tokens, the last only a few.
_FIRST_TEMPERATURE, _LAST_TEMPERATURE, _TEMPERATURES = 1.0, 1e-3, 12


class BalancedAssignment(typing.NamedTuple):
  """An assignment and a certificate of how good it is.

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
  """The assignment of m real tokens that maximises the sum of scores with at most ceil(m / E) per expert.

  If E divides m, every expert gets exactly m / E; otherwise fewer than E slots stay empty, where that costs least. The
  dual objective is `sum_t max_e(score[t, e] - price[e]) + ceil(m / E) * sum_e price[e]`. The result is balanced however
  early the search stops, and the gap says what that cost. Ties go to the lower index, so results are reproducible;
  which of several optima is found may depend on rounding, and so differ under `jax.vmap`.

  Args:
    scores: `[n, E]`; non-finite ones count as the smallest finite one, as in fairseq.
    mask: bool `[n]`, False for padding.
    max_exchanges: limit on cancelled cycles. Tens are typical, a few hundred if scores are small integers.
  """
  n, num_experts = scores.shape
  scores = _finite(scores.astype(jnp.float32), mask)
  room = (mask.sum() + num_experts - 1) // num_experts
  # Empty slots hold a token n that scores 0 with all experts; they fill the tokens up to a multiple of E.
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
  """Scores `[n, E]` with 0 for padding, and the smallest finite one (0 if there is none) for non-finite ones."""
  finite = jnp.isfinite(scores)
  smallest = jnp.where(finite & mask[:, None], scores, jnp.inf).min()
  smallest = jnp.where(jnp.isfinite(smallest), smallest, 0.0)
  return jnp.where(mask[:, None], jnp.where(finite, scores, smallest), 0.0)


def _smoothed_prices(scores: jax.Array, weight: jax.Array, room: jax.Array) -> jax.Array:
  """Prices `[E]` that nearly balance the experts: the dual with an ever sharper softmax for the maximum.

  At each temperature one Sinkhorn step, which is always safe, and one Newton step on the E prices, which converges.

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
    # The Hessian of the dual times temperature; the added diagonal covers its null space and experts without load.
    hessian = jnp.diag(load + 1e-3 * target) - share.T @ (weight[:, None] * share)
    change = jnp.linalg.solve(hessian, load - target)
    # The quadratic model holds for changes of a few temperatures.
    return price + temperature * change * jnp.minimum(1.0, 4 / jnp.maximum(jnp.abs(change).max(), 1.0)), None

  scale = jnp.where(regret > 0, regret, 1.0)
  temperatures = scale * jnp.geomspace(_FIRST_TEMPERATURE, _LAST_TEMPERATURE, _TEMPERATURES)
  price = jax.lax.scan(step, jnp.zeros(num_experts), temperatures)[0]
  # If no expert is preferred, the prices would be rounding noise.
  return jnp.where(regret > 0, price, 0.0)


def _first_table(net: jax.Array, mask: jax.Array, room: jax.Array) -> jax.Array:
  """int32 `[E, C]`, C = ceil(n / E): the tokens of each expert in its first `room` slots, n in empty ones.

  Experts take the tokens that prefer them, in the order of what those would lose elsewhere; tokens that find no room
  fill free slots in order, for the exchanges to improve.

  Args:
    net: float32 `[n, E]`, scores less prices.
    mask: bool `[n]`.
    room: int32 scalar, slots in use.
  """
  n, num_experts = net.shape
  capacity = -(-n // num_experts)
  best, choice = highest(net, min(2, num_experts))
  choice, wanted = choice[:, :1], mask[:, None]
  position = queue_by_priority(choice, wanted, best[:, 0] - best[:, -1], num_experts)
  seated = wanted & (position < room)
  table = slot_routing(choice, best[:, :1], seated, position, num_experts, capacity).token
  left = jnp.argsort((seated | ~wanted)[:, 0], stable=True).astype(jnp.int32)
  free = (table == n) & (jnp.arange(capacity) < room)
  rank = jnp.cumsum(free.reshape(-1)).reshape(free.shape) - 1
  return jnp.where(free & (rank < (wanted & ~seated).sum()), left[rank], table)


def _exchanged(
  table: jax.Array, price: jax.Array, scores: jax.Array, room: jax.Array, max_exchanges: int
) -> tuple[jax.Array, jax.Array]:
  """The table `[E, C]` after exchanges along cycles of experts until none gains, and the prices `[E]` that prove it.

  Along the cycle of largest mean gain each expert passes on all tokens that gain together, not just one, so that
  thousands of equal tokens take one exchange.
  """
  num_experts, capacity = table.shape
  in_use = (jnp.arange(capacity) < room)[:, None] | jnp.eye(num_experts, dtype=bool)[:, None, :]
  # The rounding error of E additions of float32 scores; a smaller gain may not be one.
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

  def unfinished(state: tuple) -> jax.Array:
    return state[2] & (state[3] < max_exchanges)

  return jax.lax.while_loop(unfinished, exchange, (table, price, jnp.array(True), 0))[:2]


def _certified(
  scores: jax.Array, expert: jax.Array, price: jax.Array, mask: jax.Array, room: jax.Array
) -> BalancedAssignment:
  """The result with its value and gap; the gap is a sum of nonnegative terms."""
  of_token = jnp.minimum(expert, scores.shape[1] - 1)[:, None]
  net = scores - price
  regret = net.max(1) - jnp.take_along_axis(net, of_token, axis=1)[:, 0]
  load = jnp.zeros_like(price).at[expert].add(1.0, mode="drop")
  gap = (regret * mask).sum() + ((room - load) * price).sum()
  value = (jnp.take_along_axis(scores, of_token, axis=1)[:, 0] * mask).sum()
  return BalancedAssignment(expert.astype(jnp.int32), price, value, gap)
