"""k-means: Lloyd's algorithm and its seeding, for points with a mask. Float32 throughout."""

import functools

import jax
import jax.numpy as jnp


def to_unit_length(x: jax.Array) -> jax.Array:
  """`x` `[..., d]` in float32 and of length 1; 0 stays 0."""
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def squared_distances(points: jax.Array, centroids: jax.Array) -> jax.Array:
  """`[..., n, E]`, of `points` `[..., n, d]` from `centroids` `[E, d]`; never negative."""
  products = jnp.matmul(points, centroids.T, precision=jax.lax.Precision.HIGHEST)
  lengths = jnp.square(points).sum(-1)[..., None] + jnp.square(centroids).sum(-1)
  return jnp.maximum(lengths - 2 * products, 0.0)


def assign(points: jax.Array, centroids: jax.Array) -> jax.Array:
  """int32 `[..., n]`, which of `centroids` `[E, d]` is nearest to each of `points` `[..., n, d]`; ties to the lower."""
  return jnp.argmin(squared_distances(points, centroids), axis=-1).astype(jnp.int32)


def totals(points: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`[E, d]` and `[E]`, the sum and the number of each cluster's points.

  Args:
    points: `[..., n, d]`.
    chosen: bool `[..., n, E]`, whether a point is in a cluster.
  """
  member = chosen.reshape(-1, chosen.shape[-1]).astype(jnp.float32)
  total = jnp.matmul(member.T, points.reshape(len(member), -1), precision=jax.lax.Precision.HIGHEST)
  return total, member.sum(0)


def means(total: jax.Array, count: jax.Array, otherwise: jax.Array) -> jax.Array:
  """`[E, d]`, the mean of each cluster's points, from their `totals`; `otherwise` `[E, d]` for those without points."""
  return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1.0)[:, None], otherwise)


def lloyd_step(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Every centroid to the mean of the points nearest to it (Lloyd 1982).

  Args:
    points: `[n, d]`.
    centroids: `[E, d]`; one without points stays.

  Returns:
    The new centroids, and the mean squared distance from the old ones, which no step increases.
  """
  distances = squared_distances(points, centroids)
  chosen = jax.nn.one_hot(jnp.argmin(distances, axis=-1), len(centroids), dtype=bool)
  return means(*totals(points, chosen), centroids), distances.min(-1).mean()


def spread(points: jax.Array, mask: jax.Array, count: int, key: jax.Array) -> jax.Array:
  """`[count, d]`, initial centroids by k-means++ (Arthur and Vassilvitskii 2007).

  The first is drawn uniformly, each next one with probability proportional to its squared distance from the nearest.

  Args:
    points: `[n, d]`.
    mask: bool `[n]`, the points that may be drawn; if fewer than `count` are distinct, some are repeated.
    count: E.
    key: PRNG key.
  """
  smallest = jnp.finfo(jnp.float32).tiny

  def pick(nearest, key):
    odds = jnp.where(jnp.isinf(nearest), 1.0, jnp.maximum(nearest, smallest))
    index = jax.random.categorical(key, jnp.where(mask, jnp.log(odds), -jnp.inf))
    # A product, not points[index], which would gather all points if they are sharded.
    one = (jnp.arange(len(points)) == index).astype(points.dtype)
    point = jnp.matmul(one, points, precision=jax.lax.Precision.HIGHEST)
    return jnp.minimum(nearest, squared_distances(points, point[None])[:, 0]), point

  return jax.lax.scan(pick, jnp.full(len(points), jnp.inf), jax.random.split(key, count))[1]


@functools.partial(jax.jit, static_argnames=("count", "steps"))
def k_means(points: jax.Array, count: int, key: jax.Array, steps: int = 50) -> tuple[jax.Array, jax.Array]:
  """Centroids `[count, d]` after `steps` of Lloyd's algorithm, and the objective before each, `[steps]`.

  Args:
    points: `[n, d]`.
    count: E.
    key: PRNG key of the seeding.
    steps: iterations; the default is usually more than enough to converge.
  """
  start = spread(points, jnp.ones(len(points), bool), count, key)
  return jax.lax.scan(lambda centroids, _: lloyd_step(points, centroids), start, length=steps)
