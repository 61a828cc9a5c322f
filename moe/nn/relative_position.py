"""T5's relative position bias (Raffel et al. 2020, section 2.1): a learned scalar per head and bucket of distances.

Distances are between indices in a row. Within a packed example they equal the differences of positions; across examples
attention is masked anyway.

The bias of a sequence depends on the distance alone, so a long one is kept as tiles, of which those along a diagonal
are the same: of `[1024, 1024]` biases 15 of 64 tiles.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from moe.nn.linear import normal
from moe.parallel.mesh import ROW_AXES, current_mesh

TILE = 128  # queries and keys of one


def diagonal_of(row: Any, column: Any, rows: int) -> Any:
  """The diagonal that the tile at this row and column is on, of those of a matrix with so many rows of tiles."""
  return column - row + rows - 1


def expanded(bias: jax.Array, queries: int) -> jax.Array:
  """`[S, h, Q, K]` from `[S, h, n, TILE, TILE]`, the tiles of its n diagonals; or what it is given, if it is that."""
  if bias.ndim == 4:
    return bias
  rows = queries // TILE
  columns = bias.shape[2] - rows + 1
  first = [diagonal_of(row, 0, rows) for row in range(rows)]
  tiles = jnp.stack([bias[:, :, at : at + columns] for at in first], axis=2)  # [S, h, row, column, TILE, TILE]
  return tiles.swapaxes(3, 4).reshape(*bias.shape[:2], queries, columns * TILE)


def bucket(distance: jax.Array, *, causal: bool, buckets: int, max_distance: int) -> jax.Array:
  """Bucket of each relative distance `key position - query position`.

  Half of the buckets hold one distance each, the rest grow logarithmically up to `max_distance`; everything farther
  shares the last. If bidirectional, keys before and after the query have half of the buckets each; if causal, keys
  after the query share bucket 0 with the query itself, and are masked.

  Args:
    distance: int32, any shape.
    causal: whether keys after the query are masked, so that they need no buckets.
    buckets: their number; a multiple of 4 (of 2 if causal).
    max_distance: in tokens.

  Returns:
    int32 of the same shape, in `[0, buckets)`.
  """
  offset = jnp.zeros_like(distance)
  if causal:
    distance = jnp.maximum(-distance, 0)
  else:
    buckets //= 2
    offset = jnp.where(distance > 0, buckets, 0)
    distance = jnp.abs(distance)
  exact = buckets // 2
  ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / np.log(max_distance / exact)
  far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
  return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativeBias(nnx.Module):
  """A learned table `[buckets, heads]` of biases that are added to attention logits."""

  def __init__(self, num_heads: int, *, causal: bool, buckets: int, max_distance: int, std: float, rngs: nnx.Rngs):
    self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
    self.table = normal(rngs, (buckets, num_heads), std)

  @jax.named_scope("position_bias")
  def __call__(self, length: int, places: np.ndarray | None = None) -> jax.Array:
    """The bias for a whole sequence, float32 `[1, heads, length, length]` (query, key), as `expanded` gives it.

    Distances are between indices, or between the `places` of the tokens, int `[length]`, if they are given. Between
    indices, a bias for a multiple of `TILE` tokens comes as its tiles `[1, heads, 2 length / TILE - 1, TILE, TILE]`.

    On a mesh the first axis has one entry per row shard, computed there, so that devices sum the gradient of the table
    and not that of the result.
    """
    mesh = current_mesh()
    if mesh is None:
      return self._lookup(self.table[...], _distances(length, places))[None]
    return jax.shard_map(
      lambda table: self._lookup(table, _distances(length, places))[None],
      mesh=mesh,
      in_specs=PartitionSpec(None, "model"),
      out_specs=PartitionSpec(ROW_AXES, "model"),
      check_vma=False,
    )(self.table[...])

  @jax.named_scope("position_bias")
  def row(self, position: jax.Array, length: int) -> jax.Array:
    """The bias for one query at `position` (int32 scalar) over `length` keys: float32 `[1, heads, 1, length]`."""
    return self._lookup(self.table[...], (jnp.arange(length) - position)[None])[None]

  def _lookup(self, table: jax.Array, distances: jax.Array) -> jax.Array:
    """`[..., Q, K]` distances to `[heads, ..., Q, K]`.

    As a product: the gradient of a gather would be a scatter of all pairs into few buckets.
    """
    index = bucket(distances, causal=self.causal, buckets=self.buckets, max_distance=self.max_distance)
    chosen = (index[..., None] == jnp.arange(self.buckets)).astype(table.dtype)
    return jnp.einsum("...b,bh->h...", chosen, table, precision=jax.lax.Precision.HIGHEST)


def _distances(length: int, places: np.ndarray | None) -> jax.Array:
  """Int32 `[length, length]`, or `[n, TILE, TILE]` on the diagonals, from each query to each key."""
  if places is not None or length % TILE:
    index = jnp.arange(length) if places is None else jnp.asarray(places)
    return index - index[:, None]
  count, index = length // TILE, jnp.arange(TILE)
  return TILE * jnp.arange(1 - count, count)[:, None, None] + (index - index[:, None])
