"""The rows of ragged experts: gathers that give zeros out of range, and how many rows a part of a program computes."""

import contextlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

# An index out of range of every array: reads are filled, writes are dropped.
NOWHERE = jnp.iinfo(jnp.int32).max


def assigned(rows: jax.Array, weight: jax.Array, which: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The tokens and weights of some assignments; `NOWHERE` and 0 for indices out of range."""
  return rows.at[which].get(mode="fill", fill_value=NOWHERE), weight.at[which].get(mode="fill", fill_value=0)


def fetch(array: jax.Array, rows: jax.Array) -> jax.Array:
  """`array[rows]`; zeros for rows out of range."""
  return array.at[rows].get(mode="fill", fill_value=0)


class Mark(NamedTuple):
  """What a marked part of a program computes, each of its loops as one trip.

  Attributes:
    rows: that it computes for the experts.
    padding: how many rows that are no assignment an actual routing makes it compute, at most.
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
