"""k-means routing: Lloyd's algorithm, the moving average, and what a router makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError, build
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.k_means import KMeans, KMeansConfig, moved_centroids, nearest_tokens
from moe.routing.solvers.clustering import (
  assign,
  k_means,
  lloyd_step,
  means,
  spread,
  squared_distances,
  to_unit_length,
  totals,
)
from tests.routing.naive import learn, token_weights

EXPERTS, WIDTH, BATCH, LENGTH = 4, 8, 3, 16
TOKENS = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH))
MASK = jnp.ones((BATCH, LENGTH), bool).at[1, 11:].set(False)


def blobs(count=3, each=40, width=5, seed=0):
  """Points `[count * each, width]` close to `count` far centers, and which each belongs to."""
  draw = np.random.default_rng(seed)
  centers = 10 * np.eye(width)[:count]
  label = draw.permutation(np.repeat(np.arange(count), each))
  return jnp.asarray(centers[label] + 0.1 * draw.normal(size=(count * each, width)), jnp.float32), label, centers


def make(**options) -> KMeans:
  return build(RouterConfig, {"name": "k_means", **options}).make(Site(WIDTH, EXPERTS), nnx.Rngs(0))


@functools.partial(jax.jit, static_argnames=("graph", "training"))
def _step(graph, state, tokens, mask, key, *, training):
  router, inputs = nnx.merge(graph, state), RouterInput(tokens, mask, key=key)
  (output,) = learn(router, inputs) if training else [router(inputs, training=False)]
  return output, nnx.state(router)


def step(router, tokens=TOKENS, mask=MASK, *, training=True, seed=0):
  """The output, and the router afterwards."""
  graph, state = nnx.split(router)
  output, state = _step(graph, state, tokens, mask, jax.random.key(seed), training=training)
  return output, nnx.merge(graph, state)


def chosen(output, length=LENGTH) -> np.ndarray:
  return ~np.isnan(token_weights(output.routing, length, EXPERTS))


def begun(router):
  """The router with centroids that are tokens."""
  return step(router)[1]


def test_distances_are_those_of_the_definition():
  points, centroids = np.asarray(TOKENS[0]), np.asarray(TOKENS[1, :5])
  expected = np.square(points[:, None] - centroids).sum(-1)
  np.testing.assert_allclose(squared_distances(points, centroids), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(assign(points, centroids), expected.argmin(-1))
  np.testing.assert_array_equal(assign(points, jnp.zeros((3, WIDTH))), 0)  # ties to the lower


def test_lloyds_objective_never_increases_and_its_fixed_point_is_a_mean():
  points = jax.random.normal(jax.random.key(3), (200, 6))
  centroids, objective = k_means(points, 7, jax.random.key(4), steps=60)
  assert (np.diff(objective) <= 1e-6).all() and objective[-1] < objective[0]
  again, _ = jax.jit(lloyd_step)(points, centroids)
  np.testing.assert_allclose(again, centroids, atol=1e-6)
  label = np.asarray(assign(points, centroids))
  for cluster in range(7):
    np.testing.assert_allclose(centroids[cluster], points[label == cluster].mean(0), atol=1e-5)


def test_separated_blobs_are_recovered_whatever_the_start():
  points, label, centers = blobs()
  for seed in range(5):
    centroids, _ = k_means(points, 3, jax.random.key(seed), steps=10)
    found = np.asarray(assign(points, centroids))
    order = np.asarray(assign(jnp.asarray(centers, jnp.float32), centroids))
    np.testing.assert_array_equal(found, order[label])
    np.testing.assert_allclose(centroids[order], centers, atol=0.1)


def test_a_centroid_without_points_stays():
  far = jnp.full((1, 5), 1e3)
  centroids, _ = lloyd_step(blobs()[0], jnp.concatenate([jnp.zeros((1, 5)), far]))
  np.testing.assert_array_equal(centroids[1:], far)


def test_the_start_is_different_real_points_in_proportion_to_their_distance():
  points = jnp.array([[0.0], [0.0], [1.0], [3.0], [50.0]])
  mask = jnp.array([True, True, True, True, False])
  draw = jax.jit(jax.vmap(lambda key: spread(points, mask, 2, key)[:, 0]))
  first, second = np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).T
  np.testing.assert_allclose([(first == value).mean() for value in (0, 1, 3)], [0.5, 0.25, 0.25], atol=0.03)
  after_zero = second[first == 0]  # squared distances 1 and 9
  np.testing.assert_allclose([(after_zero == value).mean() for value in (0, 1, 3)], [0, 0.1, 0.9], atol=0.03)
  everything = spread(points, mask, 4, jax.random.key(0))[:, 0]  # more than there are different ones
  assert set(np.asarray(everything)) == {0, 1, 3}


def test_the_moving_average_goes_straight_to_the_mean_of_all_groups_and_leaves_empty_experts():
  points, member = TOKENS, jnp.zeros((BATCH, LENGTH, EXPERTS), bool)
  member = member.at[0, :3, 0].set(True).at[2, 5:7, 0].set(True).at[1, :, 1].set(True)
  centroids = jax.random.normal(jax.random.key(5), (EXPERTS, WIDTH))
  mean = np.concatenate([points[0, :3], points[2, 5:7]]).mean(0)
  moved = moved_centroids(centroids, *totals(points, member), 0.9)
  np.testing.assert_allclose(moved[0], 0.9 * np.asarray(centroids[0]) + 0.1 * mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(moved[2:], centroids[2:])
  np.testing.assert_allclose(means(*totals(points, member), centroids)[0], mean, rtol=1e-5, atol=1e-6)


def test_a_token_goes_to_the_nearest_centroid_by_its_direction_with_weight_one():
  router = begun(make())
  output, _ = step(router, training=False)
  label = np.asarray(assign(to_unit_length(TOKENS), router.centroids[...]))
  np.testing.assert_array_equal(chosen(output).argmax(-1)[MASK], label[MASK])
  np.testing.assert_array_equal(chosen(output).sum(-1), MASK)
  weights = token_weights(output.routing, LENGTH, EXPERTS)
  assert set(weights[~np.isnan(weights)]) == {1.0}
  scaled, _ = step(router, 7.0 * TOKENS, training=False)
  np.testing.assert_array_equal(chosen(scaled), chosen(output))


def test_the_first_batch_gives_centroids_that_are_its_real_tokens_and_later_ones_move_them():
  router = make(decay=0.9)
  output, first = step(router)
  # The decision is made before: by random directions of unit length.
  np.testing.assert_allclose(jnp.linalg.norm(router.centroids[...], axis=-1), 1.0, rtol=1e-5)
  label = np.asarray(assign(to_unit_length(TOKENS), router.centroids[...]))
  np.testing.assert_array_equal(chosen(output).argmax(-1)[MASK], label[MASK])
  real = np.asarray(to_unit_length(TOKENS))[MASK]
  for centroid in np.asarray(first.centroids[...]):
    assert (np.abs(real - centroid).max(-1) < 1e-6).any()
  output, second = step(first)
  of_experts = totals(to_unit_length(TOKENS), jnp.asarray(chosen(output)))
  expected = moved_centroids(first.centroids[...], *of_experts, 0.9)
  np.testing.assert_allclose(second.centroids[...], expected, rtol=1e-5, atol=1e-6)
  assert (np.asarray(second.centroids[...]) != np.asarray(first.centroids[...])).any()


def test_padding_moves_nothing():
  garbage = jnp.where(MASK[..., None], TOKENS, 1e3)
  plain, other = step(begun(make()))[1], step(begun(make()), garbage)[1]
  np.testing.assert_array_equal(plain.centroids[...], other.centroids[...])


def test_training_on_separated_directions_finds_them():
  router = make(decay=0.5)
  directions = jnp.eye(WIDTH)[jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, EXPERTS)]
  for seed in range(8):
    output, router = step(router, directions + 0.02 * TOKENS, jnp.ones_like(MASK), seed=seed)
  label = np.asarray(directions.argmax(-1))
  found = chosen(output).argmax(-1)
  assert len({(a, b) for a, b in zip(label.ravel(), found.ravel(), strict=True)}) == EXPERTS


@pytest.mark.parametrize("options", [{}, {"update": "fixed", "centroids": "c.npz"}])
def test_evaluation_moves_nothing_nor_does_training_if_fixed(options):
  router = make(**options)
  before = np.asarray(router.centroids[...])
  _, after = step(router, training=bool(options))
  np.testing.assert_array_equal(after.centroids[...], before)
  assert not after.begun[...]


def test_no_gradient_reaches_the_tokens_or_the_centroids():
  graph, state = nnx.split(begun(make()))
  assert not jax.tree.leaves(nnx.state(begun(make()), nnx.Param))

  def total(tokens):
    output, _ = _step(graph, state, tokens, MASK, jax.random.key(0), training=True)
    return (output.routing.weight**2).sum() + output.auxiliary_loss

  np.testing.assert_array_equal(jax.grad(total)(TOKENS), 0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", [{}, {"balanced": True}, {"capacity_factor": 0.5}])
def test_leaks_are_those_that_it_declares(options, training):
  router = begun(make(**options))
  everywhere = jnp.ones_like(MASK)
  weights = lambda x: jnp.asarray(chosen(step(router, x, everywhere, training=training)[0]))  # noqa: E731
  leak = future_leak(weights, TOKENS, 9, jax.random.key(1))
  assert (leak == 0) == router.config.is_causal(training=training) == (not router.config.balanced)
  assert router.config.is_batch_independent(LENGTH, training=training)
  assert company_leak(weights, TOKENS, jax.random.key(2)) == 0


def test_balanced_experts_take_the_tokens_nearest_to_them():
  output, _ = step(begun(make(balanced=True)), mask=jnp.ones_like(MASK), training=False)
  np.testing.assert_array_equal(output.routing.group_sizes, LENGTH // EXPERTS)
  distances = jnp.array([[3.0, 1.0], [1.0, 1.0], [2.0, 5.0], [0.0, 0.0]])
  picked = nearest_tokens(distances, jnp.array([True, True, True, False]), 2)
  np.testing.assert_array_equal(picked, [[0, 1], [1, 1], [1, 0], [0, 0]])
  with pytest.raises(NotImplementedError, match="later tokens"):
    make(balanced=True).decode(None, {})


def test_the_first_centroids_need_a_key():
  with pytest.raises(
    ValueError, match=r"RouterInput\.key = None: expected a key, as KMeans draws its first centroids in training"
  ):
    make()(RouterInput(TOKENS, MASK), training=True)


def test_centroids_from_a_file_are_those_of_all_layers_or_of_each(tmp_path):
  for name, shape in (("one", (EXPERTS, WIDTH)), ("layers", (3, EXPERTS, WIDTH))):
    array, path = np.random.default_rng(0).normal(size=shape), str(tmp_path / f"{name}.npz")
    np.savez(path, centroids=array)
    stored = KMeansConfig(centroids=path).stored(Site(WIDTH, EXPERTS), "")
    np.testing.assert_array_equal(stored["centroids"], array)
    assert stored["begun"]  # so that the first batch does not replace them
  with pytest.raises(ConfigError, match=r"expected centroids \[experts, d_model\] = \(5, 8\), .*, not \(4, 8\)"):
    KMeansConfig(centroids=str(tmp_path / "one.npz")).stored(Site(WIDTH, 5), "")
  with pytest.raises(
    ConfigError, match=r"centroids = 'x\.npz': expected a file made by scripts/build_centroids.py, found none"
  ):
    KMeansConfig(centroids="x.npz").stored(Site(WIDTH, EXPERTS), "")
  assert KMeansConfig().stored(Site(WIDTH, EXPERTS), "") == {}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"update": "fixed"}, "centroids = '': expected a file made by scripts/build_centroids.py for update = \"fixed\""),
    ({"decay": 1.0}, r"decay = 1\.0: expected at least 0 and less than 1"),
    ({"balanced": True, "capacity_factor": 1.0}, r"capacity_factor = 1\.0: expected None, since balanced"),
  ],
)
def test_options_that_make_no_sense_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    build(RouterConfig, {"name": "k_means", **options})


def test_balanced_experts_need_as_many_tokens():
  with pytest.raises(ConfigError, match="balanced = True: expected sequences of at least 8 tokens, one per expert"):
    KMeansConfig(balanced=True).check(Site(WIDTH, 8), 2, 7)
