"""Statistics of studies, on simulated data whose truth is known."""

import math
import subprocess
import sys

import numpy as np
import pytest

from moe.config import ConfigError
from moe.studies import statistics
from moe.studies.statistics import (
  hierarchical_interval,
  holm,
  mean_interval,
  paired_difference,
  required_seeds,
  speedup,
  steps_to,
  verdict,
)
from tests.slow import slow

REPEATS = 2000  # of a simulation: 95% of these have a standard error of half a point


def rng(seed=0):
  return np.random.default_rng(seed)


def covered(found, truth):
  return np.mean([one.low <= truth <= one.high for one in found])


# Paired differences.


def test_a_paired_difference_is_what_the_t_test_says_by_hand():
  # Differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(2 degrees) quantile 4.3027, t = 0.2 / (0.1 / sqrt(3)) = 3.4641.
  found = paired_difference([5.0, 5.1, 5.2], [5.1, 5.3, 5.5])
  assert found.mean == pytest.approx(0.2)
  assert (found.low, found.high) == pytest.approx((0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
  assert found.p == pytest.approx(0.0742, abs=1e-4)
  assert (found.seeds, found.diverged) == (3, 0)


def test_the_interval_of_a_paired_difference_covers_the_truth_and_a_null_is_found_in_5_percent():
  seeds = 5
  # What is common to both arms of a seed is a hundred times what the arm changes: only pairing sees it.
  common = rng(1).normal(5, 1, (REPEATS, seeds))
  ours = common + rng(2).normal(0, 0.01, (REPEATS, seeds))
  null = [paired_difference(a, b) for a, b in zip(ours, common)]
  assert 0.94 <= covered(null, 0.0) <= 0.96
  assert 0.04 <= np.mean([one.p < 0.05 for one in null]) <= 0.06
  planted = paired_difference(ours[0] - 0.2, common[0])
  assert planted.low > 0.1 and planted.p < 0.01


def test_one_seed_has_a_mean_but_no_interval_and_no_verdict():
  found = paired_difference([5.0], [5.5])
  assert found.mean == 0.5 and math.isnan(found.p)
  assert verdict(found.low, found.high) == "not resolved"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_is_counted_and_leaves_nothing_to_claim(loss):
  pair = paired_difference([5.0, loss, 5.0], [6.0, 6.1, 6.2])
  crossed = hierarchical_interval(np.where(np.eye(3, 4) == 1, loss, 1.0) + np.zeros((3, 4)))
  assert (pair.seeds, pair.diverged, crossed.diverged) == (3, 1, 3)
  for found in (pair, crossed):
    assert math.isnan(found.mean) and verdict(found.low, found.high) == "not resolved"


def test_arms_that_are_the_same_differ_by_nothing():
  for found in (paired_difference([1.0, 2.0], [1.0, 2.0]), hierarchical_interval(np.zeros((2, 3)))):
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_unpaired_seeds_are_refused():
  with pytest.raises(ConfigError, match=r"theirs = \(1,\): expected the shape of ours, \(2,\)"):
    paired_difference([1.0, 2.0], [1.0])
  with pytest.raises(ConfigError, match=r"baseline = \(1, 2\): expected .* of our 2 seeds"):
    speedup(np.ones((2, 2)), np.ones((1, 2)), [1, 2])


# Seeds and blocks.


@pytest.mark.parametrize(
  "seeds, of_seed, of_block, noise",
  [(4, 1.0, 8.0, 8.0), (5, 0.02, 5.0, 0.5), (8, 1.0, 0.5, 0.5)],
  ids=["all", "blocks", "seeds"],
)
def test_the_interval_over_seeds_and_blocks_covers_the_truth(seeds, of_seed, of_block, noise):
  draw = rng(3)
  found = []
  for _ in range(REPEATS):
    differences = 0.3 + of_seed * draw.normal(size=(seeds, 1)) + of_block * draw.normal(size=(1, 32))
    found.append(hierarchical_interval(differences + noise * draw.normal(size=(seeds, 32)), resamples=400))
  assert 0.93 <= covered(found, 0.3) <= 0.97


def test_an_interval_over_seeds_alone_is_that_of_the_t_test_and_one_over_blocks_alone_has_their_freedom():
  by_seed = np.array([0.1, 0.2, 0.4, 0.3])
  crossed, paired = hierarchical_interval(np.tile(by_seed[:, None], 50)), paired_difference(np.zeros(4), by_seed)
  assert (crossed.low, crossed.high) == pytest.approx((paired.low, paired.high), abs=0.005)
  by_block = rng(4).normal(0.2, 1.0, 50)
  crossed, paired = hierarchical_interval(np.tile(by_block, (4, 1))), paired_difference(np.zeros(50), by_block)
  assert (crossed.low, crossed.high) == pytest.approx((paired.low, paired.high), abs=0.01)
  assert crossed.p == pytest.approx(paired.p, abs=0.01)


def test_the_bootstrap_over_seeds_and_blocks_has_the_spread_of_an_analysis_of_variance():
  draw = rng(10)
  x = draw.normal(size=(5, 1)) + 4 * draw.normal(size=(1, 30)) + 5 * draw.normal(size=(5, 30))
  rows, columns = x.mean(1), x.mean(0)
  of_seeds, of_blocks = 30 * rows.var(ddof=1), 5 * columns.var(ddof=1)  # mean squares
  of_noise = np.sum((x - rows[:, None] - columns + x.mean()) ** 2) / (4 * 29)
  variance = (of_seeds + of_blocks - of_noise) / 150
  freedom = variance**2 / ((of_seeds / 150) ** 2 / 4 + (of_blocks / 150) ** 2 / 29)
  found = hierarchical_interval(x, resamples=50_000)
  margin = statistics.stats.t.isf(0.025, freedom) * variance**0.5
  assert (found.high - found.mean, found.mean - found.low) == pytest.approx((margin, margin), rel=0.02)


def test_blocks_count_by_their_tokens():
  differences = np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
  assert hierarchical_interval(differences, [2, 1, 1]).mean == pytest.approx(1.0)
  # A block without tokens is as if it were not there, but for the luck of the draw.
  draw = rng(5).normal(size=(5, 40))
  padded, bare = np.hstack([draw, np.full((5, 40), 9.0)]), hierarchical_interval(draw)
  found = hierarchical_interval(padded, [1.0] * 40 + [0.0] * 40)
  assert found.mean == pytest.approx(bare.mean)
  assert (found.low, found.high) == pytest.approx((bare.low, bare.high), abs=0.05)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_one_seed_or_one_block_has_no_interval(shape):
  found = hierarchical_interval(rng().normal(size=shape))
  assert math.isfinite(found.mean) and math.isnan(found.low) and math.isnan(found.high)


# Steps to a target.


@pytest.mark.parametrize(
  "losses, target, steps",
  [
    ([4, 3, 2, 1], 2.5, 150),  # halfway in loss between 100 and 200
    ([4, 3, 2, 1], 1.75, 225),
    ([4, 3, 2, 1], 3.0, 100),
    ([4, 3, 2, 1], 4.5, 0),  # at the first validation already
    ([4, 3, 2, 1], 0.5, math.inf),
    ([4, 2, 3, 1], 2.5, 75),  # the first crossing, though the curve rises again
    ([math.nan, math.inf, 2, 1], 2.5, 200),  # nothing to interpolate from
    ([4, math.nan, math.nan, math.nan], 2.5, math.inf),
    ([4, 3, 2, 1], math.nan, math.inf),
  ],
)
def test_steps_to_a_target_by_hand(losses, target, steps):
  assert steps_to([0, 100, 200, 300], losses, target) == pytest.approx(steps)


# Speed-up.

X = np.linspace(0, 1000, 11)


def curves(speeds):
  """Losses `[S, 11]` that fall by 1 in 1,000 steps times a seed's speed."""
  return 5 - np.asarray(speeds)[:, None] * X / 1000


def test_a_planted_speedup_is_found():
  found = speedup(curves([2.0, 2.2, 1.8, 2.1]), curves([1.0] * 4), X)
  assert found.ratios == pytest.approx((2.0, 2.2, 1.8, 2.1))
  assert found.estimate == pytest.approx(np.prod([2.0, 2.2, 1.8, 2.1]) ** 0.25)
  assert 1.7 < found.low < 2 < found.high < 2.4 and found.censored == 0
  assert [verdict(found.low, found.high, claim) for claim in (1, 2, 3)] == ["held", "not resolved", "did not hold"]


def test_a_target_is_the_final_loss_of_the_same_seed():
  found = speedup(curves([2.0, 6.0]), curves([1.0, 3.0]), X)
  assert found.ratios == pytest.approx((2.0, 2.0))


def test_flops_have_an_axis_of_their_own_for_each_arm_and_seed():
  base = curves([1.0, 1.0])
  found = speedup(curves([2.0, 2.0]), base[:, ::5], np.outer([10, 20], X), baseline_x=np.outer([10, 10], X[::5]))
  assert found.ratios == pytest.approx((2.0, 1.0))


def test_censored_runs_are_counted_and_open_the_interval():
  found = speedup(curves([2.0, 1.5, 1.7, 0.9, 1.6, 1.8]), curves([1.0] * 6), X)
  assert found.ratios == pytest.approx((2.0, 1.5, 1.7, 0.0, 1.6, 1.8))
  assert (found.censored, found.seeds) == (1, 6)
  assert (found.estimate, found.low, found.high) == pytest.approx((1.65, 0.0, 2.0))
  five = speedup(curves([2.0, 1.5, 1.7, 0.9, 1.6]), curves([1.0] * 5), X)
  bounds = np.log([2.0, 1.5, 1.7, 1.0, 1.6])
  high = np.exp(bounds.mean() + 2.776 * bounds.std(ddof=1) / 5**0.5)  # 2.776: Student's t, 4 degrees of freedom
  assert (five.estimate, five.low, five.high) == pytest.approx((1.6, 0.0, high), rel=1e-3)
  known = speedup(curves([1.5, 0.9, 0.8]), curves([1.0] * 3), X)
  assert (known.low, known.high) == (0.0, math.inf)


def test_the_upper_end_of_few_seeds_with_censored_ones_is_rarely_below_the_truth():
  speeds = 1.2 * np.exp(0.3 * rng(7).normal(size=(REPEATS, 4)))  # 27% are below 1
  found = [speedup(curves(one), curves([1.0] * 4), X) for one in speeds]
  assert np.mean([one.high < 1.2 for one in found]) <= 0.03


def test_nine_seeds_bear_one_censored_run():
  found = speedup(curves([0.5, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9]), curves([1.0] * 9), X)
  assert (found.estimate, found.low, found.high) == pytest.approx((1.5, 1.2, 1.8))


def test_an_arm_that_never_reaches_the_target_is_slower():
  slow = np.vstack([curves([0.5] * 5), [5.0] + [math.nan] * 10])  # five are too slow, and one diverges
  found = speedup(slow, curves([1.0] * 6), X)
  assert found.censored == 6 and math.isnan(found.estimate) and found.limit == 1
  assert verdict(found.low, found.high, 1) == "did not hold"


def test_a_run_that_is_longer_says_how_slow_it_is():
  found = speedup(curves([0.4, 1.25]), curves([1.0, 1.0]), 2 * X, baseline_x=X)
  assert found.ratios == pytest.approx((0.0, 0.625)) and found.limit == 0.5


def test_a_baseline_that_diverged_sets_no_target():
  base = curves([1.0, 1.0])
  base[1, -1] = math.nan
  found = speedup(curves([2.0, 2.0]), base, X)
  assert (found.diverged, found.censored) == (1, 0) and math.isnan(found.estimate)
  assert found.ratios == pytest.approx((2.0, math.nan), nan_ok=True)


@pytest.mark.parametrize("truth, seeds, censored", [(2.0, 4, 0.0), slow(1.2, 9, 0.18), slow(1.0, 6, 0.5)])
def test_the_interval_of_a_speedup_covers_the_truth(truth, seeds, censored):
  speeds = truth * np.exp(0.2 * rng(6).normal(size=(REPEATS, seeds)))
  found = [speedup(curves(one), curves([1.0] * seeds), X) for one in speeds]
  assert np.mean([one.censored for one in found]) / seeds == pytest.approx(censored, abs=0.02)
  # Order statistics are discrete: six seeds cover 1 - 2 / 2^6 = 96.9%.
  assert 0.94 <= covered(found, truth) <= 0.975
  said = [verdict(one.low, one.high, truth) for one in found]
  assert max(said.count("held"), said.count("did not hold")) / REPEATS < 0.035


# The rest.


def test_the_interval_of_a_mean_is_that_of_its_standard_error_when_there_are_many():
  values = rng(1).normal(0.2, 1.0, 2000)
  low, high = mean_interval(values)
  error = values.std() / np.sqrt(2000)
  assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error)
  assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_holm_multiplies_by_the_number_of_hypotheses_that_are_left():
  assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert holm([0.02, 0.005, 0.04, 0.03]) == pytest.approx([0.06, 0.02, 0.06, 0.06])
  assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
  assert holm([]) == []


def test_holm_counts_a_contrast_that_could_not_be_tested():
  assert holm([0.01, math.nan]) == pytest.approx([0.02, 1.0])


def test_holm_finds_something_in_nothing_in_5_percent_of_families():
  null = rng(8).uniform(size=(REPEATS, 10))
  assert 0.04 <= np.mean([min(holm(one)) < 0.05 for one in null]) <= 0.06


@pytest.mark.parametrize("effect, seeds", [(1.0, 10), (0.5, 34), (0.25, 128), (2.0, 5)])
def test_required_seeds_are_those_of_published_tables(effect, seeds):
  # Cohen's d of a two-sided paired t test at 5% with a power of 80%, as G*Power gives them.
  assert required_seeds(0.01, 0.01 * effect) == required_seeds(0.01, -0.01 * effect) == seeds


@pytest.mark.parametrize("effect, power", [(1.2, 0.8), (0.8, 0.9)])
def test_required_seeds_have_the_power_and_one_fewer_has_not(effect, power):
  seeds = required_seeds(1.0, effect, power)
  for n, enough in ((seeds, True), (seeds - 1, False)):
    differences = rng(9).normal(effect, 1.0, (200_000, n))
    t = differences.mean(1) / (differences.std(1, ddof=1) / n**0.5)
    found = np.mean(np.abs(t) > statistics.stats.t.isf(0.025, n - 1))
    assert (found >= power - 0.002) == enough


def test_required_seeds_of_extremes():
  assert required_seeds(0.0, 0.01) == required_seeds(1e-9, 1.0) == 2
  assert required_seeds(1.0, 0.001) == pytest.approx((1.95996 + 0.84162) ** 2 * 1e6, rel=1e-3)
  with pytest.raises(ConfigError, match="effect = 0: expected a number other than 0"):
    required_seeds(0.01, 0)


@pytest.mark.parametrize(
  "low, high, threshold, expected",
  [
    (0.01, 0.03, 0, "held"),
    (-0.03, -0.01, 0, "did not hold"),
    (-0.01, 0.03, 0, "not resolved"),
    (0.004, 0.03, 0.005, "not resolved"),
    (2.1, 2.9, 2, "held"),
    (1.2, 1.8, 2, "did not hold"),  # faster, but not twice
    (1.8, math.inf, 2, "not resolved"),
    (math.nan, math.nan, 0, "not resolved"),
  ],
)
def test_a_verdict_is_made_from_the_interval(low, high, threshold, expected):
  assert verdict(low, high, threshold) == expected


def test_statistics_need_no_jax():
  code = "import sys, runpy; runpy.run_path(sys.argv[1]); print('jax' in sys.modules)"
  assert subprocess.check_output([sys.executable, "-c", code, statistics.__file__], text=True).strip() == "False"
