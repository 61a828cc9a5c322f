"""The cycle of largest mean weight in a complete graph of few nodes, by Karp 1978 (the minimum cycle mean, negated).

If nodes are experts and an edge weighs the gain of the best move of one token along it, a cycle of positive weight is
an exchange that improves an assignment, and once none is left the potentials are optimal prices. Cancelling the cycle
of largest mean first takes polynomially many exchanges (Goldberg and Tarjan 1989), and very few here.
"""

import typing

import jax
import jax.numpy as jnp


class MeanCycle(typing.NamedTuple):
  """The result of `max_mean_cycle`.

  Attributes:
    following: int32 `[E]`, the successor of each node on the cycle, and every other node itself: a permutation.
    mean: float32 scalar, weight of the cycle divided by its number of edges, at least 0.
    potential: float32 `[E]`, with `potential[f] - potential[e] >= weight[e, f] - mean` for every edge.
  """

  following: jax.Array
  mean: jax.Array
  potential: jax.Array


def max_mean_cycle(weight: jax.Array) -> MeanCycle:
  """The cycle of largest mean weight, in E steps of O(E^2) operations and O(E^2) memory.

  Args:
    weight: float32 `[E, E]`, of the edge from row to column; 0 on the diagonal, -inf where there is no edge.
  """
  nodes = weight.shape[0]
  none = jnp.zeros(nodes, weight.dtype)

  def lengthen(best: jax.Array, _) -> tuple[jax.Array, jax.Array]:
    return (best[:, None] + weight).max(0), best

  last, best = jax.lax.scan(lengthen, none, length=nodes)
  # best[k, v] is the weight of the heaviest walk of k edges that ends in v, last[v] that of E edges.
  edges = jnp.arange(nodes, dtype=weight.dtype)[:, None]
  means = ((last - best) / (nodes - edges)).min(0)
  end = means.argmax()
  potential = (best - edges * means[end]).max(0)
  return MeanCycle(_cycle_on(_walk(weight, best, end)), means[end], potential)


def _walk(weight: jax.Array, best: jax.Array, end: jax.Array) -> jax.Array:
  """int32 `[E + 1]`, the nodes of the heaviest walk of E edges to `end`, from its end to its start."""

  def back(node: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    before = (row + weight[:, node]).argmax()
    return before, before

  return jnp.append(end, jax.lax.scan(back, end, best, reverse=True)[1][::-1])


def _cycle_on(walk: jax.Array) -> jax.Array:
  """int32 `[E]`, successors on the first cycle closed by the backward walk; every cycle on it has the largest mean."""
  index = jnp.arange(walk.size)
  met_again = (walk[:, None] == walk) & (index[:, None] < index)
  close = met_again.any(0).argmax()
  on_cycle = (index > met_again[:, close].argmax()) & (index <= close)
  nodes = walk.size - 1
  following = jnp.arange(nodes, dtype=jnp.int32)
  return following.at[jnp.where(on_cycle, walk, nodes)].set(jnp.roll(walk, 1).astype(jnp.int32), mode="drop")
