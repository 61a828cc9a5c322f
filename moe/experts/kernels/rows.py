"""Rows that an index names, and nothing where it names none: what both forms of ragged experts fetch."""

import jax
import jax.numpy as jnp

# An index out of range of everything: reads there give nothing, writes go nowhere.
NOWHERE = jnp.iinfo(jnp.int32).max


def assigned(rows: jax.Array, weight: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The tokens and weights that stand at `places` among the assignments; `NOWHERE` and 0 for places out of range."""
  return rows.at[places].get(mode="fill", fill_value=NOWHERE), weight.at[places].get(mode="fill", fill_value=0)


def fetch(array: jax.Array, rows: jax.Array) -> jax.Array:
  """`array[rows]`; zeros for rows out of range."""
  return array.at[rows].get(mode="fill", fill_value=0)
