"""What masks tell about the next token: closed forms, the published table of pools, and nothing for causal routers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.evaluation.mask_information import conditional_information, mask_information
from scripts.benchmarks.leaks import measure_leaks, random_masks


def test_information_of_frequencies_that_are_known():
  a, b, given = (axis.ravel() for axis in np.mgrid[:2, :2, :1000])
  # Miller and Madow: 2 + 2 - 4 - 1 bins, over twice 4000 observations.
  assert conditional_information(a, b, 0 * given) == pytest.approx(-1 / 8000, rel=1e-6)
  assert conditional_information(a, a, 0 * given) == pytest.approx(np.log(2), abs=1e-3)
  # Each bit tells nothing of the other, but with their sum known it tells everything.
  assert conditional_information(a, b, a ^ b) == pytest.approx(np.log(2), abs=1e-3)


def test_a_mask_that_is_the_next_token_tells_all_of_it_and_one_that_is_the_own_token_nothing():
  measured = lambda route: mask_information(route, [3, 5], 64, 8, jax.random.key(0), batches=8)  # noqa: E731
  following = measured(lambda ids: jnp.roll(ids, -1, axis=1)[..., None] == 5)
  assert following.nats == pytest.approx(np.log(2), abs=0.01)
  own = measured(lambda ids: ids[..., None] == 5)
  assert abs(own.nats) < 1e-9


def test_experts_apart_add_up_what_each_tells_by_itself():
  def route(ids):  # the parity of two experts tells the next bit, neither of them alone
    noise = jax.random.bernoulli(jax.random.key(9), 0.5, ids.shape)
    return jnp.stack([noise, noise ^ (jnp.roll(ids, -1, axis=1) == 1), jnp.roll(ids, -1, axis=1) == 1], axis=-1)

  apart = mask_information(route, [0, 1], 256, 8, jax.random.key(0), experts="apart")
  assert apart.nats == pytest.approx(np.log(2), abs=4 * apart.standard_error + 0.005)
  two = lambda ids: route(ids)[..., :2]  # noqa: E731
  assert abs(mask_information(two, [0, 1], 256, 8, jax.random.key(1), experts="apart").nats) < 0.01
  assert mask_information(two, [0, 1], 256, 8, jax.random.key(1)).nats == pytest.approx(np.log(2), abs=0.01)


@pytest.mark.parametrize(
  ("pool", "published", "error"), [(4, 0.2821, 0.0047), (8, 0.0821, 0.0008), (16, 0.0264, 0.0004)]
)
def test_expert_choice_leaks_what_was_published_for_its_pool(pool, published, error):
  found = measure_leaks("expert_choice", {"group_size": pool}, 1, pool, tokens=150_000, seeds=4)
  # Four routers differ by more than the dozens behind the published value.
  assert found["nats"] == pytest.approx(published, abs=3 * np.hypot(error, found["standard_error"]) + 0.03 * published)


@pytest.mark.parametrize("name", ["position_grouped", "prefix_rank"])
def test_causal_expert_choice_leaks_nothing(name):
  masks = random_masks(name, {}, 32, 16, seed=0)
  found = mask_information(masks, range(8), 32, 16, jax.random.key(0), batches=40, blocks=8)
  assert abs(found.nats) < 4 * found.standard_error
  assert found.standard_error < 0.005  # of the smallest leak that matters here, a pool of 16
