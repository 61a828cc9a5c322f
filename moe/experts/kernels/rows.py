"""The rows of ragged experts: gathers that give zeros out of range, and how many rows a part of a program computes."""

import contextlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

# An index out of range of every array: reads are filled, writes are dropped.
NOWHERE = jnp.iinfo(jnp.int32).max

# Experts that a token has on average where it may have all of them: a guess, on which time depends and results do not.
_FEW = 2
# How many more rows than expected there is room for at once.
SLACK = 1.25


def assigned(rows: jax.Array, weight: jax.Array, which: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The tokens and weights of some assignments; `NOWHERE` and 0 for indices out of range."""
  return rows.at[which].get(mode="fill", fill_value=NOWHERE), weight.at[which].get(mode="fill", fill_value=0)


def fetch(array: jax.Array, rows: jax.Array) -> jax.Array:
  """`array[rows]`; zeros for rows out of range."""
  return array.at[rows].get(mode="fill", fill_value=0)


def expected_rows(room: int, tokens: int, num_experts: int) -> int:
  """How many of `room` assignments a router will make: all of them, unless there is room for every expert."""
  return room if room < num_experts * tokens else min(room, _FEW * tokens)


def rows_at_once(room: int, tokens: int, num_experts: int) -> int:
  """How many assignments kernels are given at a time."""
  return min(room, int(SLACK * expected_rows(room, tokens, num_experts)))


class Mark(NamedTuple):
  """What a marked part of a program computes, each of its loops as one trip.

  Attributes:
    rows: that it computes for the experts.
    padding: how many rows that are no assignment an actual routing makes it compute, at most; of one part, where the
      assignments are computed in parts.
  """

  rows: int
  padding: int


def mark(rows: int, padding: int) -> contextlib.AbstractContextManager:
  """A scope whose name says so, for whoever counts what it costs."""
  return jax.named_scope(f"rows_{rows}_padding_{padding}")


def mark_of(scopes: str) -> Mark | None:
  """The mark in the names of scopes around an operation."""
  found = re.search(r"rows_(\d+)_padding_(\d+)", scopes)
  return Mark(int(found[1]), int(found[2])) if found else None
