"""Any `Routing` as a dense table: the weight of every token at every expert."""

import jax
import jax.numpy as jnp

from moe.routing.groups import Groups
from moe.routing.types import RaggedRouting, Routing, SlotRouting, SoftRouting


def routing_weights(routing: Routing, n: int) -> jax.Array:
  """float32 `[G, n, E]`: the weight of each token at each expert, 0 where it did not go.

  In soft routing it is the sum over the expert's slots. O(n * E) memory: for inspection and biases, not for dispatch.

  Args:
    routing: of one layer.
    n: tokens of a group; assignments of tokens from n on are ignored.
  """
  match routing:
    case SlotRouting():
      experts = routing.token.shape[1]
      expert = jnp.broadcast_to(jnp.arange(experts)[:, None], routing.token.shape[1:])
      return jax.vmap(lambda token, weight: _table(token, expert, weight, (n, experts)))(routing.token, routing.weight)
    case RaggedRouting():
      experts, positions = routing.group_sizes.shape[1], jnp.arange(routing.token.shape[1])

      def one_group(token, weight, sizes):
        expert = jnp.searchsorted(jnp.cumsum(sizes), positions, side="right")
        return _table(token, expert, weight, (n, experts))

      return jax.vmap(one_group)(routing.token, routing.weight, routing.group_sizes)
    case SoftRouting():
      return routing.combine.sum(-1)


def layer_weights(routing: Routing, groups: Groups, batch: int, length: int) -> jax.Array:
  """float32 `[L, B, T, E]`: the same of several layers, whose axis L leads, for the tokens in their sequences.

  Args:
    routing: of the layers.
    groups: that the batch was divided into.
    batch: B.
    length: T.
  """
  return jax.vmap(lambda one: groups.join(routing_weights(one, groups.size), batch, length))(routing)


def _table(token: jax.Array, expert: jax.Array, weight: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """`[n, E]` table of one group's assignments; tokens and experts out of range are ignored."""
  return jnp.zeros(shape, jnp.float32).at[token, expert].add(weight, mode="drop")
