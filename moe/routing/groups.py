"""How a batch is divided into routing groups."""

import dataclasses

import jax

from moe.config import ConfigError, require


@dataclasses.dataclass(frozen=True)
class Groups:
  """A division of `[B, T]` tokens into groups of `size` tokens.

  Attributes:
    size: n, a divisor of B * T.
    by_position: False divides along sequences; True across them, so that a group of B tokens holds one token of every
      sequence, all at the same index in their rows.
  """

  size: int
  by_position: bool = False

  def cut(self, x: jax.Array) -> jax.Array:
    """`[B, T, ...]` to `[G, n, ...]`."""
    x = x.swapaxes(0, 1) if self.by_position else x
    return x.reshape(-1, self.size, *x.shape[2:])

  def join(self, x: jax.Array, batch: int, length: int) -> jax.Array:
    """`[G, n, ...]` back to `[B, T, ...]`."""
    if self.by_position:
      return x.reshape(length, batch, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(batch, length, *x.shape[2:])


def check_group_size(group_size: int, default: str = "the whole batch") -> None:
  """Raises `ConfigError` unless it is a number of tokens, or 0 for the default."""
  require(group_size >= 0, "group_size", group_size, f"expected at least 0, and 0 means {default}")


def checked_groups(group_size: int, batch: int, length: int, *, training: bool = True) -> Groups:
  """Groups of `group_size` tokens, or a single group of the whole batch if it is 0.

  Batches of evaluation and decoding have the shape of what there is to read, so the size need not divide them: it is
  then rounded up to the next divisor, and a smaller batch is one group. So groups are never smaller than in training,
  as long as there are enough tokens.

  Raises:
    ConfigError: in training, it does not divide `batch * length`; the message suggests the nearest divisor.
  """
  total = batch * length
  if group_size == 0:
    return Groups(total)
  if not training:
    return Groups(next((size for size in range(group_size, total) if total % size == 0), total))
  if total % group_size:
    near = min((size for size in range(1, total + 1) if total % size == 0), key=lambda size: abs(size - group_size))
    raise ConfigError(
      "group_size", group_size, f"expected a divisor of {batch} x {length} = {total} tokens, such as {near}"
    )
  return Groups(group_size)


def within_sequences(group_size: int, length: int) -> bool:
  """Whether no group of `group_size` tokens (0: the whole batch) holds tokens of two sequences of `length`."""
  return group_size > 0 and length % group_size == 0
