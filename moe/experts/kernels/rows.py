"""Gathers of rows that give zeros out of range, used by both forms of ragged experts."""

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
