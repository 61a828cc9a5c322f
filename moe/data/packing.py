"""Several examples per row, so that little of a batch is padding."""

import numpy as np


def best_fit(lengths: np.ndarray, capacity: np.ndarray) -> list[np.ndarray]:
  """Rows of examples by best-fit decreasing; only examples that can share a row cost time.

  Args:
    lengths: [n, k], the length of each example in each of k features, at most `capacity`.
    capacity: [k], the length of a row in each feature.

  Returns:
    The example numbers of each row: every example in exactly one row, no row above capacity. Depends on `lengths` only.
  """
  if len(lengths) == 0:
    return []
  alone = (lengths + lengths.min(axis=0) > capacity).any(axis=1)
  sharing = np.flatnonzero(~alone)
  sharing = sharing[np.argsort(-lengths[sharing].sum(axis=1), kind="stable")]
  rows = [[i] for i in np.flatnonzero(alone)]
  return [np.array(row) for row in rows + _pack(lengths, sharing, capacity)]


def _pack(lengths: np.ndarray, order: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
  """Puts each example, in the given order, into the row that it leaves the least free space in."""
  free = np.empty((len(order), lengths.shape[1]), np.int64)
  rows: list[list[int]] = []
  for i in order:
    left = free[: len(rows)] - lengths[i]
    slack = np.where((left >= 0).all(axis=1), left.sum(axis=1), np.iinfo(np.int64).max)
    best = int(slack.argmin()) if len(rows) else 0
    if not rows or slack[best] == np.iinfo(np.int64).max:
      best = len(rows)
      free[best] = capacity
      rows.append([])
    rows[best].append(i)
    free[best] -= lengths[i]
  return rows
