"""Dropless exchange with fixed shapes: rounds of all-to-all, as many as the fullest device needs.

A router without capacity may send all tokens to one expert. Buffers for that would be as large as all tokens of all
devices. Instead, each device sends every other one at most a quota of tokens per round, the experts compute what
arrived and send it back, and rounds repeat until nothing is left. If no device gets more than `SLACK` times its share,
that is one round; otherwise memory stays the same and time grows with the fullest device, which all would have waited
for anyway. Nothing is dropped, and since all devices agree on the number of rounds, none waits for a message that never
comes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe.experts.exchange.assignments import Assignments
from moe.experts.kernels.dropout import HiddenDropout, named, picked
from moe.experts.kernels.names import ragged_names
from moe.experts.kernels.rows import SLACK
from moe.experts.kernels.runs import runs_by_expert
from moe.parallel.mesh import ROW_AXES
from moe.routing.types import RaggedRouting


def in_rounds(
  tokens: jax.Array, assigned: Assignments, ragged: Callable, weights: Any, dropout: HiddenDropout | None = None
) -> jax.Array:
  """Runs a device's tokens through the experts of all devices along the mesh axis `expert`, inside `shard_map`.

  Args:
    tokens: `[N, d]`.
    assigned: their assignments.
    ragged: `Experts.ragged`.
    weights: of this device's experts.
    dropout: of their hidden units, with names of the tokens `[N]`.

  Returns:
    `[N, d]`, weighted sums.
  """
  devices = jax.lax.axis_size("expert")
  quota = min(len(assigned.row), -(-int(SLACK * assigned.expected) // devices))
  sent = assigned.sizes.reshape(devices, -1)
  rounds = jax.lax.pmax(-(-sent.sum(axis=1).max() // quota), ROW_AXES)
  exchange = _Exchange(sent, swap(sent), rounds, quota)
  # The first and usually only round is differentiated directly; further ones are recomputed in the backward pass.
  row, weight = assigned.row, assigned.weight
  dropout = dropout and named(dropout, ragged_names(dropout.names, row, assigned.sizes))
  first = exchange.round(0, ragged, tokens, row, weight, weights, dropout)
  return (first + _further_rounds(ragged, exchange, tokens, row, weight, weights, dropout)).astype(tokens.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Exchange:
  """Who sends what in which round.

  Attributes:
    sent: int32 `[P, E / P]`, this device's assignments by destination and expert; received: likewise by source.
    rounds: int32 scalar, the same on all devices.
    quota: rows that one device sends another per round.
  """

  sent: jax.Array
  received: jax.Array
  rounds: jax.Array
  quota: int = dataclasses.field(metadata={"static": True})

  def round(self, index, ragged, tokens, row, weight, weights, dropout) -> jax.Array:
    """What the assignments of one round add to the output, float32 `[N, d]`."""
    totals = self.sent.sum(axis=1)  # [P]
    before = (jnp.cumsum(totals) - totals)[:, None]
    number = index * self.quota + jnp.arange(self.quota)  # [quota]
    assignment = jnp.where(number < totals[:, None], before + number, len(row))  # [P, quota]
    rows = row.at[assignment].get(mode="fill", fill_value=len(tokens))
    arrived = swap(tokens.at[rows].get(mode="fill", fill_value=0))
    drops = picked(dropout, assignment)
    y = swap(self._compute(index, ragged, arrived, weights, drops and named(drops, swap(drops.names))))
    weighted = y * weight.at[assignment].get(mode="fill", fill_value=0)[..., None]
    return jnp.zeros(tokens.shape, jnp.float32).at[rows].add(weighted, mode="drop")

  def _compute(self, index, ragged, arrived, weights, dropout) -> jax.Array:
    """Applies this device's experts to `[P, quota, d]`, where each source's rows are sorted by expert."""
    through = jnp.clip(jnp.cumsum(self.received, axis=1) - index * self.quota, 0, self.quota)
    sizes = jnp.diff(through, axis=1, prepend=0)  # [P, E / P]
    by_source = jnp.broadcast_to(jnp.arange(self.quota, dtype=jnp.int32), arrived.shape[:2])
    ones = jnp.ones(arrived.shape[:2], jnp.float32)
    order, weight, sizes = runs_by_expert(RaggedRouting(by_source, ones, sizes), self.quota)
    if dropout is not None:
      ragged = functools.partial(ragged, dropout=picked(named(dropout, dropout.names.reshape(-1)), order))
    return ragged(weights, arrived.reshape(-1, arrived.shape[-1]), order, weight, sizes).reshape(arrived.shape)


def swap(x: jax.Array) -> jax.Array:
  """All-to-all of `[P, ...]`: entry p goes to device p, and becomes the one from device p.

  Entries lie along the first axis on both sides: for any other, TPUs copy both into another layout and back.
  """
  return jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _further_rounds(ragged, exchange, tokens, row, weight, weights, dropout):
  """The sum of rounds 1, 2, ...: a loop whose length is known only at run time."""

  def add(index, out):
    return out + exchange.round(index, ragged, tokens, row, weight, weights, dropout)

  return jax.lax.fori_loop(1, exchange.rounds, add, jnp.zeros(tokens.shape, jnp.float32))


def _forward(ragged, *arguments):
  return _further_rounds(ragged, *arguments), arguments


def _backward(ragged, arguments, gradient):
  exchange, tokens, row, weight, weights, dropout = arguments

  def add(index, sums):
    def one(tokens, weight, weights):
      return exchange.round(index, ragged, tokens, row, weight, weights, dropout)

    _, pull_back = jax.vjp(one, tokens, weight, weights)
    return jax.tree.map(jnp.add, sums, pull_back(gradient))

  start = jax.tree.map(jnp.zeros_like, (tokens, weight, weights))
  d_tokens, d_weight, d_weights = jax.lax.fori_loop(1, exchange.rounds, add, start)
  return None, d_tokens, None, d_weight, d_weights, None


_further_rounds.defvjp(_forward, _backward)
