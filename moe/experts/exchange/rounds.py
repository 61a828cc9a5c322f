"""Dropless exchange with fixed shapes: rounds of all-to-all, as many as the fullest device needs.

A router without capacity may send everything to one expert. Buffers for that would be as large as all tokens of all
devices. Instead every device sends each other one at most a quota of tokens at a time, the experts compute what has
arrived and send it back, and all go on to the next round until nobody has anything left. When load is balanced to
within `SLACK` that is one round; otherwise memory stays what it is and time grows with the fullest device, which all
would have waited for anyway. Nothing is dropped, and no device ever waits for a message that does not come.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe.experts.exchange.assignments import Assignments
from moe.experts.kernels.runs import runs_by_expert
from moe.parallel.mesh import ROW_AXES
from moe.routing.types import RaggedRouting

# How much more than its share of balanced load a device may be sent in one round.
SLACK = 1.25


def in_rounds(tokens: jax.Array, assigned: Assignments, ragged: Callable, weights: Any) -> jax.Array:
  """A device's tokens through the experts of all devices along the mesh axis `expert`. Only within `shard_map`.

  Args:
    tokens: `[N, d]`.
    assigned: their assignments.
    ragged: `Experts.ragged`.
    weights: of this device's experts.

  Returns:
    `[N, d]`, weighted sums.
  """
  devices = jax.lax.axis_size("expert")
  quota = min(len(assigned.row), -(-int(SLACK * assigned.expected) // devices))
  sent = assigned.sizes.reshape(devices, -1)
  rounds = jax.lax.pmax(-(-sent.sum(axis=1).max() // quota), ROW_AXES)
  exchange = _Exchange(sent, _swap(sent), rounds, quota)
  # The usual only round is differentiated as it is; those that may follow are computed anew in the backward pass.
  row, weight = assigned.row, assigned.weight
  first = exchange.round(0, ragged, tokens, row, weight, weights)
  return (first + _further_rounds(ragged, exchange, tokens, row, weight, weights)).astype(tokens.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Exchange:
  """Who sends what in which round.

  Attributes:
    sent: int32 `[P, E / P]`, this device's assignments by destination and expert; received: likewise by source.
    rounds: int32 scalar, the same on all devices.
    quota: rows that one device sends another in a round.
  """

  sent: jax.Array
  received: jax.Array
  rounds: jax.Array
  quota: int = dataclasses.field(metadata={"static": True})

  def round(self, index, ragged, tokens, row, weight, weights) -> jax.Array:
    """What the assignments of one round add to the output, float32 `[N, d]`."""
    totals = self.sent.sum(axis=1)
    place = index * self.quota + jnp.arange(self.quota)
    place = jnp.where(place < totals[:, None], place + (jnp.cumsum(totals) - totals)[:, None], len(row))
    rows = row.at[place].get(mode="fill", fill_value=len(tokens))
    arrived = _swap(tokens.at[rows].get(mode="fill", fill_value=0))
    y = _swap(self._compute(index, ragged, arrived, weights))
    weighted = y * weight.at[place].get(mode="fill", fill_value=0)[..., None]
    return jnp.zeros(tokens.shape, jnp.float32).at[rows].add(weighted, mode="drop")

  def _compute(self, index, ragged, arrived, weights) -> jax.Array:
    """The experts of this device on `[P, quota, d]`, each source's rows sorted by expert."""
    through = jnp.clip(jnp.cumsum(self.received, axis=1) - index * self.quota, 0, self.quota)
    sizes = jnp.diff(through, axis=1, prepend=0)
    by_source = jnp.broadcast_to(jnp.arange(self.quota, dtype=jnp.int32), arrived.shape[:2])
    ones = jnp.ones(arrived.shape[:2], jnp.float32)
    order, weight, sizes = runs_by_expert(RaggedRouting(by_source, ones, sizes), self.quota)
    return ragged(weights, arrived.reshape(-1, arrived.shape[-1]), order, weight, sizes).reshape(arrived.shape)


def _swap(x: jax.Array) -> jax.Array:
  """`[P, ...]`, entry p for device p, to entry p from device p."""
  return jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _further_rounds(ragged, exchange, tokens, row, weight, weights):
  """The sum of rounds 1, 2, ...: a loop whose length is known only when the program runs."""

  def add(index, out):
    return out + exchange.round(index, ragged, tokens, row, weight, weights)

  return jax.lax.fori_loop(1, exchange.rounds, add, jnp.zeros(tokens.shape, jnp.float32))


def _forward(ragged, *arguments):
  return _further_rounds(ragged, *arguments), arguments


def _backward(ragged, arguments, gradient):
  exchange, tokens, row, weight, weights = arguments

  def add(index, sums):
    def one(tokens, weight, weights):
      return exchange.round(index, ragged, tokens, row, weight, weights)

    _, pull_back = jax.vjp(one, tokens, weight, weights)
    return jax.tree.map(jnp.add, sums, pull_back(gradient))

  start = jax.tree.map(jnp.zeros_like, (tokens, weight, weights))
  d_tokens, d_weight, d_weights = jax.lax.fori_loop(1, exchange.rounds, add, start)
  return None, d_tokens, None, d_weight, d_weights


_further_rounds.defvjp(_forward, _backward)
