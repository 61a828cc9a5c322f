"""The statistics of studies, on SciPy: paired differences, speed-ups, and the verdict on an interval.

One sign everywhere, that of an improvement: a difference of losses is the baseline's minus ours, in nats per token; a
speed-up is the baseline's steps (or FLOPs) over ours. All intervals are of 95% and two-sided. A run that diverged is
never left out, since those that are left would be the lucky ones.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from moe.config import require

_LEVEL, _TAIL = 0.95, 0.025
_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
  """The mean improvement of a loss over paired seeds.

  Attributes:
    mean: the baseline's loss minus ours, in nats; nan if a run diverged.
    seeds: number of pairs, with those that diverged.
    low, high, p: the interval, and two-sided p of no difference; nan if a run diverged or there is one seed.
    diverged: pairs of which a loss is not finite.
  """

  mean: float
  seeds: int
  low: float = math.nan
  high: float = math.nan
  p: float = math.nan
  diverged: int = 0


@dataclasses.dataclass(frozen=True)
class Speedup:
  """How many times fewer steps (or FLOPs) we need than the baseline.

  Attributes:
    estimate: geometric mean of the ratios, or median if any is censored; nan if it is itself or a baseline diverged.
    low, high: ends of the interval; 0 and inf are open ends, where the seeds say nothing.
    ratios: one per seed; 0 where the target was not reached, nan where the baseline diverged.
    limit: what a censored ratio is below: the baseline's last step over ours, 1 for runs of equal length.
    seeds, censored, diverged: number of pairs, of our runs that missed the target, of baselines that set none.
  """

  estimate: float
  low: float
  high: float
  ratios: tuple[float, ...]
  limit: float
  seeds: int
  censored: int
  diverged: int


def paired_difference(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> Difference:
  """The mean of `theirs - ours` with the t interval (S - 1 degrees of freedom) and p of the paired t test.

  Args:
    ours: final losses `[S]` in nats, one per seed.
    theirs: those of the baseline `[S]`, in the same order of seeds.
  """
  ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
  require(ours.ndim == 1 and ours.size > 0, "ours", ours.shape, "expected [seeds]")
  require(ours.shape == theirs.shape, "theirs", theirs.shape, f"expected the shape of ours, {ours.shape}")
  if diverged := int(np.sum(~np.isfinite(ours) | ~np.isfinite(theirs))):
    return Difference(math.nan, len(ours), diverged=diverged)
  mean = float(np.mean(theirs - ours))
  if len(ours) == 1:
    return Difference(mean, 1)
  if np.array_equal(ours, theirs):
    return Difference(0.0, len(ours), 0.0, 0.0, 1.0)
  test = stats.ttest_rel(theirs, ours)
  low, high = test.confidence_interval(_LEVEL)
  return Difference(mean, len(ours), float(low), float(high), float(test.pvalue))


def hierarchical_interval(
  differences: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, resamples: int = _RESAMPLES
) -> Difference:
  """The mean improvement over other seeds *and* other validation text, from a bootstrap over seeds and blocks.

  All seeds see the same blocks, so the two are drawn crossed (Owen 2007, "The pigeonhole bootstrap"). The variance of
  that bootstrap counts three times the noise that each pair of a seed and a block has of its own. Drawing seeds alone
  and blocks alone shows how large it is, and two of the three are taken away. Each variance of n things is corrected by
  n / (n - 1), and the t quantile has the degrees of freedom of Welch and Satterthwaite: about S - 1 where seeds differ
  most, B - 1 where blocks do. With 4 to 8 seeds, 94-97% of intervals hold the truth; 98% if there is only the noise.

  Args:
    differences: the baseline's mean loss minus ours `[S, B]` in nats per token: S seeds, B blocks, at least 2 of each
      for an interval.
    weights: tokens per block `[B]`; equal if not given.
    resamples: number of bootstrap samples. Takes memory for this many times B numbers.
  """
  differences = np.asarray(differences, float)
  require(differences.ndim == 2 and differences.size > 0, "differences", differences.shape, "expected [seeds, blocks]")
  seeds, blocks = differences.shape
  tokens = np.ones(blocks) if weights is None else np.asarray(weights, float)
  require(tokens.shape == (blocks,), "weights", tokens.shape, f"expected one for each of {blocks} blocks")
  if diverged := int(np.sum(~np.isfinite(differences).all(1))):
    return Difference(math.nan, seeds, diverged=diverged)
  by_seed = differences @ tokens / tokens.sum()  # [S]
  mean = float(by_seed.mean())
  if min(seeds, blocks) == 1:
    return Difference(mean, seeds)
  seed_share = _counts(seeds, resamples, 0) / seeds  # [resamples, S]
  block_share = _counts(blocks, resamples, 1) * tokens  # [resamples, B]
  block_share = block_share / block_share.sum(1, keepdims=True)
  over_seeds = np.var(seed_share @ by_seed)
  over_blocks = np.var(block_share @ differences.mean(0))
  over_both = np.var(np.sum((seed_share @ differences) * block_share, 1))
  noise = max(over_both - over_seeds - over_blocks, 0) * seeds / (seeds - 1) * blocks / (blocks - 1)
  over_seeds, over_blocks = over_seeds * seeds / (seeds - 1), over_blocks * blocks / (blocks - 1)
  # Each of the two has the noise in it, and so has the variance of the mean, once.
  variance = max(over_seeds + over_blocks - noise, over_seeds, over_blocks)
  if variance == 0:
    return Difference(mean, seeds, mean, mean, float(mean == 0))
  freedom = variance**2 / (over_seeds**2 / (seeds - 1) + over_blocks**2 / (blocks - 1))
  margin = float(stats.t.isf(_TAIL, freedom)) * math.sqrt(variance)
  p = float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))
  return Difference(mean, seeds, mean - margin, mean + margin, p)


@functools.lru_cache(maxsize=4)
def _counts(n: int, resamples: int, stream: int) -> np.ndarray:
  """How often each of n things is drawn `[resamples, n]`; the same for every contrast of a study."""
  return np.random.default_rng(stream).multinomial(n, np.full(n, 1 / n), resamples).astype(float)


def steps_to(steps: npt.ArrayLike, losses: npt.ArrayLike, target: float) -> float:
  """The first step (or number of FLOPs) at which a curve is down at the target; inf if it never is.

  Linear in the loss between two validations. A curve that rises again has reached it nevertheless, so a noisy one seems
  early. Where there is no finite validation before, the step is that of the validation that found it there.

  Args:
    steps: `[V]`, increasing.
    losses: `[V]`; those that are not finite reach nothing.
    target: a loss; nan is never reached.
  """
  steps, losses = np.asarray(steps, float), np.asarray(losses, float)
  require(losses.shape == steps.shape, "losses", losses.shape, f"expected the shape of steps, {steps.shape}")
  reached = np.flatnonzero(np.isfinite(losses) & (losses <= target))
  if not reached.size:
    return math.inf
  first = reached[0]
  if first == 0 or not np.isfinite(losses[first - 1]):
    return float(steps[first])
  # From the later validation to the earlier one: `np.interp` wants losses that rise.
  return float(np.interp(target, losses[[first, first - 1]], steps[[first, first - 1]]))


def speedup(
  ours: npt.ArrayLike, baseline: npt.ArrayLike, x: npt.ArrayLike, baseline_x: npt.ArrayLike | None = None
) -> Speedup:
  """How many times less x than the baseline an arm needs to reach the baseline's final loss of the same seed.

  The ratio of a seed is the baseline's last x over that at which our curve is down at the baseline's last loss. A run
  that never is (also one that diverged) is censored: its ratio is below `limit` and of unknown size. If none is, the
  interval is the t interval of the log ratios. Else it is that of the median by order statistics, which assumes nothing
  about the ratios. From 6 to 8 seeds it reaches from the least ratio to the greatest, so that one censored run opens
  the lower end; 9 seeds bear one, 12 two, 15 three. Of five seeds or fewer the lower end is open, and the upper one is
  that of the t interval with censored ratios at their limits, if at least two are not censored.

  Args:
    ours: validation losses `[S, V]`.
    baseline: those of the baseline `[S, W]`, in the same order of seeds.
    x: steps or cumulative FLOPs of our validations, `[V]` or `[S, V]`.
    baseline_x: of the baseline's, `[W]` or `[S, W]`, if they are others.
  """
  ours, baseline = np.asarray(ours, float), np.asarray(baseline, float)
  require(ours.ndim == 2 and ours.size > 0, "ours", ours.shape, "expected [seeds, validations]")
  paired = baseline.ndim == 2 and len(baseline) == len(ours)
  require(paired, "baseline", baseline.shape, f"expected the validations of our {len(ours)} seeds")
  x = np.broadcast_to(np.asarray(x, float), ours.shape)
  ends = np.broadcast_to(x if baseline_x is None else np.asarray(baseline_x, float), baseline.shape)[:, -1]  # [S]
  ratios = ends / [steps_to(*curve) for curve in zip(x, ours, baseline[:, -1])]  # [S]
  ratios[~np.isfinite(baseline[:, -1])] = math.nan
  limits = ends / x[:, -1]
  diverged, censored = int(np.isnan(ratios).sum()), int(np.sum(ratios == 0))
  estimate, low, high = (math.nan,) * 3 if diverged else _typical(ratios, limits)
  return Speedup(estimate, low, high, tuple(ratios.tolist()), float(limits.max()), len(ours), censored, diverged)


def _typical(ratios: np.ndarray, limits: np.ndarray) -> tuple[float, float, float]:
  """The typical ratio of `ratios [S]` and the ends of its interval; a ratio of 0 is anything below its limit."""
  if ratios.all():
    logs = paired_difference(np.zeros(len(ratios)), np.log(ratios))
    return math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high)
  least, most = np.sort(ratios), np.sort(np.where(ratios == 0, np.nextafter(limits, 0), ratios))
  ranks = stats.quantile_test(np.arange(len(ratios)), p=0.5).confidence_interval(_LEVEL)
  estimate = float(np.median(least)) if least[(len(ratios) - 1) // 2] else math.nan
  if np.isnan(ranks.low):  # so is the upper one
    bounds = np.log(most) if np.count_nonzero(ratios) > 1 else np.array([math.nan])  # no spread is known
    high = paired_difference(np.zeros(len(bounds)), bounds).high
    return estimate, 0.0, math.inf if math.isnan(high) else math.exp(high)
  return estimate, float(least[int(ranks.low)]), float(most[int(ranks.high)])


def mean_interval(values: np.ndarray) -> tuple[float, float]:
  """The interval of the mean of `values [n]` by a percentile bootstrap with a fixed seed."""
  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  rng = np.random.default_rng(0)
  found = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=rng).confidence_interval
  return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> list[float]:
  """Holm's corrected p values (1979), in the order given. One that is nan counts as 1: the hypothesis was there."""
  given = np.nan_to_num(np.asarray(p, float), nan=1.0)
  order = np.argsort(given, kind="stable")
  corrected = np.empty(len(given))
  corrected[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1)
  return corrected.tolist()


def required_seeds(sd: float, effect: float, power: float = 0.8) -> int:
  """The least number of paired seeds with which a two-sided paired t test at 5% finds an effect, at least 2.

  Args:
    sd: of a pilot's paired differences, in nats (or of log ratios). After 5 seeds the true one may be 2.9 x as large.
    effect: the true mean difference, in the same unit.
    power: with which probability, in (0, 1).
  """
  require(0 <= sd < math.inf, "sd", sd, "expected a finite number of at least 0")
  require(effect != 0, "effect", effect, "expected a number other than 0")
  require(0 < power < 1, "power", power, "expected a number between 0 and 1")

  def missing(n: float) -> float:
    return power - stats.nct.sf(stats.t.isf(_TAIL, n - 1), n - 1, math.sqrt(n) * abs(effect) / sd)

  if sd == 0 or missing(2) <= 0:
    return 2
  normal = ((stats.norm.isf(_TAIL) + stats.norm.ppf(power)) * sd / effect) ** 2
  return math.ceil(optimize.brentq(missing, 2, normal + 10))


def verdict(low: float, high: float, threshold: float = 0.0) -> str:
  """What the interval of an improvement says about the claim that it is above a threshold, such as 2 for "> 2x faster".

  "held": the whole interval is above it; "did not hold": below; otherwise, also without an interval, "not resolved".
  """
  return "held" if low > threshold else "did not hold" if high < threshold else "not resolved"
