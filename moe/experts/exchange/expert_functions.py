"""What the travel of tokens asks of the experts at its far end."""

from typing import Any, Protocol

import jax


class ExpertFunctions(Protocol):
  """What experts compute, as functions of their weights, each `[E, d, f]`; E may be all experts or a device's share."""

  def slots(self, weights: Any, inputs: jax.Array) -> jax.Array:
    """Expert e on its own rows: `[E, R, d]` to `[E, R, d]`."""

  def ragged(self, weights: Any, tokens: jax.Array, rows: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """`[N, d]` to `[N, d]`: the weighted sum over the assignments of each token, which are sorted by expert."""
