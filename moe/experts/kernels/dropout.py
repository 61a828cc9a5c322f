"""Dropout of the experts' hidden units, the same on any mesh: a hash of the row's name and the unit decides.

A row's name is that of its token (or soft slot) and its expert, whichever device computes it in whatever order, and the
backward pass, which recomputes the hidden units, finds the same ones again.
"""

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.nn.dropout import kept_units
from moe.routing.groups import Groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenDropout:
  """Dropout of hidden units.

  Attributes:
    key: uint32 `[2]`, of one layer and step.
    first: int32 scalar, the number of the first hidden unit that this device has.
    names: int32, of tokens, `[G, n]` or `[N]`: their numbers in the batch; of rows, `[...]`, by `row_names`; or None.
    rate: the probability that a unit is dropped; the others are scaled by 1 / (1 - rate).
  """

  key: jax.Array
  first: jax.Array | int
  names: jax.Array | None
  rate: float = dataclasses.field(metadata={"static": True})


def key_of(part: str, key: jax.Array | None) -> jax.Array | None:
  """The key of a part of the layer, by its name; the router draws from the layer's own."""
  return None if key is None else jax.random.fold_in(key, zlib.crc32(part.encode()))


def for_batch(rate: float, key: jax.Array, groups: Groups, batch: int, length: int) -> HiddenDropout:
  """For the tokens of a batch, named by their numbers in it; `key` is the layer's."""
  number = jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length)
  return HiddenDropout(jax.random.bits(key_of("experts", key), (2,)), 0, groups.cut(number), rate)


def named(dropout: HiddenDropout | None, names: jax.Array | None) -> HiddenDropout | None:
  """The same dropout for tokens or rows of these names; None stays None."""
  return dropout and dataclasses.replace(dropout, names=names)


def row_names(tokens: jax.Array, experts: jax.Array, num_experts: int) -> jax.Array:
  """int32: the names of rows that hold these tokens at these experts, which may wrap around."""
  return tokens * num_experts + experts


def picked(dropout: HiddenDropout | None, which: jax.Array) -> HiddenDropout | None:
  """The dropout of some rows; indices out of range get the name 0."""
  return dropout and named(dropout, dropout.names.at[which].get(mode="fill", fill_value=0))


def with_dropout(activation: Callable, dropout: HiddenDropout | None) -> Callable:
  """`activation` with dropout of its result, which is `[..., f]` for rows with names `[...]`."""
  if dropout is None:
    return activation

  def dropped(*before: jax.Array) -> jax.Array:
    hidden = activation(*before)
    kept = keeps(dropout, hidden.shape[-1])
    return jnp.where(kept, hidden / (1 - dropout.rate), 0).astype(hidden.dtype)

  return dropped


def keeps(dropout: HiddenDropout, units: int) -> jax.Array:
  """Bool `[..., units]`, which units of each row are kept."""
  return kept_units(dropout.key, dropout.names, dropout.first + jnp.arange(units), dropout.rate)
