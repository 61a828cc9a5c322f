"""Balanced assignment against an exact solver, and its certificate against what a certificate must be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from moe.routing.solvers.balanced_assignment import balanced_assignment

assign = jax.jit(balanced_assignment)


def all_real(scores):
  return jnp.ones(len(scores), bool)


@functools.cache
def scores_of(kind: str, n: int, experts: int) -> np.ndarray:
  """Float32 `[n, E]`: what routers give, and what breaks solvers."""
  rng = np.random.default_rng(n)
  noise, ramp = rng.normal(size=(n, experts)), np.arange(experts) / experts
  kinds = {
    "independent": noise,
    "skewed": 0.3 * noise + ramp,
    "one favourite": noise + 10 * (ramp == 0),
    "one favourite by far": noise + 1000 * (ramp == 0),
    "one-dimensional": np.outer(rng.uniform(size=n), rng.uniform(size=experts)),
    "clusters": 0.05 * noise + 2 * np.eye(experts)[np.minimum(rng.zipf(1.5, size=n) - 1, experts - 1)],
    "heavy tails": noise * np.exp(2 * rng.normal(size=(n, 1))),
    "saturated": np.asarray(jax.nn.softmax(20 * noise)),
    "ten different tokens": noise[rng.integers(min(n, 10), size=n)],
    "equal tokens": np.tile(noise[:1], (n, 1)),
    "nearly equal tokens": noise[:1] + 1e-4 * noise,
    "all equal": np.zeros((n, experts)),
    "small integers": rng.integers(4, size=(n, experts)),
    "mostly zero": noise > 1.5,
  }
  return np.float32(kinds[kind])


KINDS = [
  *("independent", "skewed", "one favourite", "one favourite by far", "one-dimensional", "clusters", "heavy tails"),
  *("saturated", "ten different tokens", "equal tokens", "nearly equal tokens", "all equal", "small integers"),
  "mostly zero",
]


def optimum(scores, room: int) -> float:
  """The exact largest sum with at most `room` tokens an expert: that many columns for each."""
  columns = np.repeat(np.asarray(scores, float), room, axis=1)
  return columns[linear_sum_assignment(columns, maximize=True)].sum()


def dual(scores, price, room: int) -> float:
  """An upper bound of the optimum for any prices that are not negative."""
  price = np.asarray(price, float)
  return (np.asarray(scores, float) - price).max(1).sum() + room * price.sum()


def value_of(scores, expert) -> float:
  return np.take_along_axis(np.asarray(scores, float), np.asarray(expert)[:, None], axis=1).sum()


def loads(expert, experts: int):
  return np.bincount(expert, minlength=experts)


def rounding(scores) -> float:
  """What sums of float32 scores may be off by."""
  return 1e-6 * len(scores) * max(float(np.abs(scores).max()), 1e-6)


def test_the_closed_form_example():
  scores = jnp.array([[3.0, 2.25], [2.0, 0.0], [5.0, 4.5], [1.0, 0.0]])  # all prefer the first; two must not
  result = assign(scores, all_real(scores))
  np.testing.assert_array_equal(result.expert, [1, 0, 1, 0])
  assert float(result.value) == 9.75
  assert float(result.gap) == pytest.approx(0, abs=1e-6)
  assert result.price[1] == 0
  assert 0.75 <= float(result.price[0]) <= 1  # what the tokens that go and those that stay would pay


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_optimal_and_balanced_and_the_certificate_says_so(kind):
  scores = scores_of(kind, 256, 8)
  result = assign(scores, all_real(scores))
  np.testing.assert_array_equal(loads(result.expert, 8), 32)
  best, value = optimum(scores, 32), value_of(scores, result.expert)
  assert value == pytest.approx(best, abs=rounding(scores))
  assert float(result.value) == pytest.approx(value, abs=rounding(scores))
  assert 0 <= float(result.gap) <= 4 * rounding(scores)


@pytest.mark.parametrize("kind", KINDS)
def test_with_more_tokens_and_experts_too_the_gap_is_far_below_a_thousandth(kind):
  scores = scores_of(kind, 1024, 16)
  result = assign(scores, all_real(scores))
  np.testing.assert_array_equal(loads(result.expert, 16), 64)
  bound = dual(scores, result.price, 64)
  assert value_of(scores, result.expert) >= bound - 1e-4 * abs(bound)
  assert float(result.gap) <= max(1e-4 * abs(bound), 1e-6)


@pytest.mark.parametrize("kind", ["iid", "orth", "skew"])
@pytest.mark.parametrize("size", ["64_4", "256_8", "1024_16"])
def test_it_reaches_the_recorded_optimum_which_fairseqs_auction_need_not(parity_dir, kind, size):
  with np.load(parity_dir / "base_assignment.npz") as data:
    scores, best, auction = (data[f"{name}_{kind}_{size}"] for name in ("in", "out_opt", "out_fairseq"))
  result = assign(scores, all_real(scores))
  assert float(result.value) == pytest.approx(float(best), rel=1e-6)
  assert float(result.value) >= float(auction) * (1 - 1e-6)
  assert float(result.gap) <= 1e-5 * float(best)


@pytest.mark.parametrize("max_exchanges", [0, 1, 3])
@pytest.mark.parametrize("kind", ["independent", "clusters", "ten different tokens", "mostly zero"])
def test_however_early_it_stops_it_is_balanced_and_the_certificate_holds(kind, max_exchanges):
  scores = scores_of(kind, 256, 8)
  result = assign(scores, all_real(scores), max_exchanges=max_exchanges)
  np.testing.assert_array_equal(loads(result.expert, 8), 32)
  bound = float(result.value) + float(result.gap)
  assert bound >= optimum(scores, 32) - rounding(scores)
  assert bound == pytest.approx(dual(scores, result.price, 32), abs=rounding(scores))


def test_every_exchange_gains():
  scores = scores_of("ten different tokens", 256, 8)
  values = [float(assign(scores, all_real(scores), max_exchanges=i).value) for i in (0, 1, 2, 3, 100)]
  assert values == sorted(values)
  assert values[0] < values[-1]


@pytest.mark.parametrize("n, experts, real", [(64, 4, 36), (64, 4, 30), (64, 4, 2), (6, 9, 4), (12, 1, 7)])
def test_padding_goes_nowhere_and_no_expert_takes_more_than_its_share_of_the_rest(n, experts, real):
  scores = scores_of("skewed", n, experts)
  mask = np.random.default_rng(0).permutation(n) < real
  result = assign(np.where(mask[:, None], scores, np.nan), mask)
  room = -(-real // experts)
  assert (np.asarray(result.expert)[~mask] == experts).all()
  assert loads(result.expert[mask], experts).max() <= room
  assert value_of(scores[mask], result.expert[mask]) == pytest.approx(optimum(scores[mask], room), rel=1e-6)
  assert 0 <= float(result.gap) <= rounding(scores)
  assert float(result.price.min()) == 0


def test_a_group_of_padding_is_no_error():
  result = assign(np.full((64, 4), np.nan, np.float32), np.zeros(64, bool))
  assert (result.expert == 4).all()
  assert (float(result.value), float(result.gap)) == (0, 0)
  assert np.isfinite(result.price).all()


def test_constants_per_token_and_per_expert_change_no_choice():
  scores, rng = scores_of("independent", 256, 8), np.random.default_rng(1)
  shifted = scores + np.float32(rng.integers(9, size=(256, 1)) + rng.integers(9, size=8))
  expert = assign(scores, all_real(scores)).expert
  np.testing.assert_array_equal(assign(shifted, all_real(scores)).expert, expert)


def test_permuted_tokens_are_assigned_the_same():
  scores, order = scores_of("skewed", 256, 8), np.random.default_rng(0).permutation(256)
  expert = assign(scores, all_real(scores)).expert
  np.testing.assert_array_equal(assign(scores[order], all_real(scores)).expert, expert[order])


def test_where_the_best_experts_are_balanced_already_all_get_their_best():
  favourite = np.random.default_rng(0).permutation(np.arange(256) % 8)
  scores = scores_of("saturated", 256, 8) + 2 * np.eye(8, dtype=np.float32)[favourite]
  np.testing.assert_array_equal(assign(scores, all_real(scores)).expert, favourite)


def test_scores_that_are_not_finite_count_as_the_smallest_that_is():
  scores = np.array(scores_of("independent", 256, 8))
  scores[::9, 2], scores[3, ::2], scores[5] = np.nan, np.inf, -np.inf
  replaced = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min())
  result, same = assign(scores, all_real(scores)), assign(replaced, all_real(scores))
  np.testing.assert_array_equal(result.expert, same.expert)
  assert float(result.value) == float(same.value)


def test_of_equal_tokens_the_first_go_to_the_first_expert():
  scores = jnp.zeros((64, 4))
  np.testing.assert_array_equal(assign(scores, all_real(scores)).expert, np.repeat([0, 1, 2, 3], 16))


def test_groups_are_assigned_apart():
  scores = np.stack([scores_of(kind, 256, 8) for kind in ("independent", "skewed", "clusters")])
  mask = np.arange(256) < np.array([[256], [100], [0]])
  together = jax.jit(jax.vmap(balanced_assignment))(scores, mask)
  for group in range(3):
    alone = assign(scores[group], mask[group])
    np.testing.assert_array_equal(together.expert[group], alone.expert)
    np.testing.assert_allclose(together.price[group], alone.price, atol=1e-5)
