"""Statistics of a routing, from arrays to the numbers of a report.

Shapes: n real tokens (no padding), E experts. `chosen` is bool `[n, E]`: whether the token reached the expert.
"""

import dataclasses

import numpy as np

DEAD_SHARE = 0.05


def experts_per_token_shares(chosen: np.ndarray) -> np.ndarray:
  """`[E + 1]`, the share of the tokens that reached 0, 1, ..., E experts."""
  tokens, experts = chosen.shape
  return np.bincount(chosen.sum(1), minlength=experts + 1) / max(tokens, 1)


def binomial_null(experts: int, mean: float) -> np.ndarray:
  """`[E + 1]`, what `experts_per_token_shares` would be if every expert took every token with probability mean / E."""
  from scipy.stats import binom  # takes a second to import

  return binom.pmf(np.arange(experts + 1), experts, mean / experts)


def shares(amounts: np.ndarray) -> np.ndarray:
  """`[E]`, each expert's share of the total of `amounts [n, E]` (`chosen`, or weights)."""
  total = amounts.sum(0, dtype=np.float64)
  return total / total.sum() if total.sum() else total


def dead_experts(load: np.ndarray) -> list[int]:
  """The experts with less than `DEAD_SHARE` of an even share, given every expert's share `load [E]`."""
  return np.flatnonzero(load * len(load) < DEAD_SHARE).tolist()


def churn(before: np.ndarray, after: np.ndarray) -> float:
  """Jaccard distance of two sets of (token, expert) pairs, bool `[n, E]` each: 0 if they are equal, 1 if disjoint."""
  union = (before | after).sum()
  return float(1 - (before & after).sum() / union) if union else 0.0


def random_churn(before: np.ndarray, after: np.ndarray) -> float:
  """The approximate churn between two unrelated routings of these sizes, in which every pair is independent."""
  p, q = before.mean(), after.mean()
  both = p * q
  return float(1 - both / (p + q - both)) if p + q else 0.0


def coactivation(chosen: np.ndarray) -> np.ndarray:
  """How often two experts share a token, as a multiple of what chance would give.

  Chance pairs experts in proportion to the tokens they take, and makes as many pairs in total as were observed.

  Returns:
    float64 `[E, E]`, symmetric; NaN on the diagonal, for an expert without tokens, and where no token has two experts.
  """
  counts = chosen.astype(np.float64)
  together, size = counts.T @ counts, counts.sum(0)
  expected = np.outer(size, size)
  np.fill_diagonal(together, 0)
  np.fill_diagonal(expected, 0)
  if not together.sum():
    return np.full(together.shape, np.nan)
  expected *= together.sum() / expected.sum()
  return np.divide(together, expected, out=np.full(expected.shape, np.nan), where=expected > 0)


@dataclasses.dataclass(frozen=True)
class TokenCount:
  """A vocabulary item at one expert.

  Attributes:
    id: of the item.
    count: how often the expert took it.
    total: how often it occurs.
    lift: its share of the expert's tokens, divided by its share of all tokens.
  """

  id: int
  count: int
  total: int
  lift: float


def frequent_tokens(
  ids: np.ndarray, chosen: np.ndarray, most: int, least_total: int
) -> list[tuple[list[TokenCount], list[TokenCount]]]:
  """For every expert its most frequent items, and its most over-represented ones (lift above 1).

  Args:
    ids: int `[n]`.
    chosen: bool `[n, E]`.
    most: length of each list, at most.
    least_total: items that occur less often are left out of the second list.
  """
  items, index, totals = np.unique(ids, return_inverse=True, return_counts=True)
  tops = []
  for expert in chosen.T:
    counts = np.bincount(index[expert], minlength=len(items))
    lift = counts / max(expert.sum(), 1) / (totals / len(ids))
    trusted = (totals >= least_total) & (lift > 1)
    by_count = np.lexsort((items, -counts))[:most]
    by_lift = np.lexsort((-counts, np.where(trusted, -lift, 0.0)))[:most]
    found = [TokenCount(*values) for values in zip(items.tolist(), counts.tolist(), totals.tolist(), lift.tolist())]
    tops.append(([found[i] for i in by_count if counts[i]], [found[i] for i in by_lift if trusted[i]]))
  return tops


@dataclasses.dataclass(frozen=True)
class ByPosition:
  """How tokens are distributed over the positions of their sequences.

  Attributes:
    starts: `[bins + 1]`, first position of each bin, and the end.
    experts: `[E, bins]`, shares of each expert's tokens; 0 for an expert without tokens.
    everyone: `[bins]`, shares of all tokens.
  """

  starts: np.ndarray
  experts: np.ndarray
  everyone: np.ndarray


def by_position(positions: np.ndarray, chosen: np.ndarray, most_bins: int) -> ByPosition:
  """Shares over bins of positions, of equal width up to rounding.

  Args:
    positions: int `[n]`.
    chosen: bool `[n, E]`.
    most_bins: the number of bins, unless there are fewer positions.
  """
  length = int(positions.max()) + 1
  bins = min(most_bins, length)
  index = positions * bins // length
  member = index[:, None] == np.arange(bins)
  counts = chosen.T.astype(np.float64) @ member
  starts = -(-np.arange(bins + 1) * length // bins)
  return ByPosition(starts, counts / np.maximum(counts.sum(1, keepdims=True), 1), member.mean(0))


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
  """A curve of at most `most` points, each the mean of neighbors. `steps [n]`, `values [n, ...]`."""
  if len(steps) <= most:
    return steps, values
  chunks = np.array_split(np.arange(len(steps)), most)
  return np.array([steps[c].mean() for c in chunks]), np.stack([values[c].mean(0) for c in chunks])
