import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.nn.relative_position import TILE, RelativeBias, bucket, expanded


def naive_bucket(distance: int, causal: bool, buckets: int, max_distance: int) -> int:
  """The definition, in Python's own floats."""
  offset = 0
  if not causal:
    buckets //= 2
    offset = buckets if distance > 0 else 0
    distance = -abs(distance)
  back = max(-distance, 0)
  exact = buckets // 2
  if back < exact:
    return offset + back
  ratio = np.log(back / exact) / np.log(max_distance / exact)
  return offset + min(exact + int(ratio * (buckets - exact) + 1e-9), buckets - 1)


def make(causal=False, heads=3, buckets=8, max_distance=20):
  return RelativeBias(heads, causal=causal, buckets=buckets, max_distance=max_distance, std=1.0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 16), (8, 20)])
def test_buckets_follow_the_definition(causal, buckets, max_distance):
  distances = np.arange(-300, 301)
  expected = [naive_bucket(d, causal, buckets, max_distance) for d in distances]
  found = bucket(jnp.asarray(distances), causal=causal, buckets=buckets, max_distance=max_distance)
  np.testing.assert_array_equal(found, expected)


def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last():
  back = -jnp.arange(200)
  found = bucket(back, causal=True, buckets=32, max_distance=128)
  np.testing.assert_array_equal(found[:16], jnp.arange(16))
  np.testing.assert_array_equal(found[128:], 31)
  assert (jnp.diff(found) >= 0).all()


def test_directions_share_no_bucket_when_bidirectional():
  before = bucket(-jnp.arange(1, 100), causal=False, buckets=32, max_distance=128)
  after = bucket(jnp.arange(1, 100), causal=False, buckets=32, max_distance=128)
  assert not set(before.tolist()) & set(after.tolist())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 40, TILE, 3 * TILE])
def test_bias_is_the_table_at_the_bucket_of_key_minus_query(causal, length):
  bias = make(causal)
  distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
  expected = bias.table[...][bucket(distance, causal=causal, buckets=8, max_distance=20)].transpose(2, 0, 1)[None]
  np.testing.assert_array_equal(expanded(bias(length), length), expected)


def test_tiles_of_one_diagonal_are_kept_once_also_where_keys_are_more_than_queries():
  assert make()(4 * TILE).shape == (1, 3, 7, TILE, TILE)
  tiles = jnp.arange(4.0)[None, None, :, None, None] + jnp.zeros((2, 3, 1, TILE, TILE))
  found = expanded(tiles, 2 * TILE)  # 2 rows and 3 columns of tiles have 4 diagonals
  expected = np.kron([[1, 2, 3], [0, 1, 2]], np.ones((TILE, TILE)))
  np.testing.assert_array_equal(found, np.broadcast_to(expected, (2, 3, 2 * TILE, 3 * TILE)))


@pytest.mark.parametrize("causal", [False, True])
def test_distances_between_places_are_not_kept_as_tiles(causal):
  places = np.arange(TILE)[::-1]
  np.testing.assert_array_equal(make(causal)(TILE, places), expanded(make(causal)(TILE), TILE)[..., ::-1, ::-1])


@pytest.mark.parametrize("causal", [False, True])
def test_row_of_one_query_is_that_row_of_the_whole(causal):
  bias = make(causal)
  whole = bias(12)
  for position in (0, 5, 11):
    np.testing.assert_array_equal(bias.row(jnp.int32(position), 12), whole[:, :, position : position + 1])


@pytest.mark.parametrize("length", [6, 2 * TILE])
def test_gradient_of_the_table_counts_how_often_a_bucket_is_used(length):
  bias = make(causal=True)
  graph, params = nnx.split(bias)
  gradient = jax.grad(lambda params: expanded(nnx.merge(graph, params)(length), length).sum())(params)
  distance = np.arange(length)[None, :] - np.arange(length)[:, None]
  used = bucket(jnp.asarray(distance), causal=True, buckets=8, max_distance=20)
  np.testing.assert_allclose(gradient["table"][...][:, 0], np.bincount(used.ravel(), minlength=8))
