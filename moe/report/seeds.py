"""Runs whose configs differ only in seeds, taken together: what they have in common, and how far they spread."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from moe.config import as_mapping
from moe.report.types import Run


@dataclasses.dataclass(frozen=True)
class Seeds:
  """The runs of one config, one for each seed; often there is only one.

  Attributes:
    runs: at least one.
  """

  runs: tuple[Run, ...]

  @property
  def name(self) -> str:
    """The run's name; of several runs the first and the last, and how many they are."""
    first, last = self.runs[0].name, self.runs[-1].name
    many = len(self.runs)
    return first if many == 1 else f"{first}, {last}" if many == 2 else f"{first} … {last} ({many} seeds)"

  def series(self, kind: str, metric: str, smooth: Callable = lambda values: values) -> tuple[np.ndarray, np.ndarray]:
    """A metric at the steps at which every run that has records of it recorded it.

    Args:
      kind: of the records.
      metric: its name in them.
      smooth: applied to all values `[n]` of each run.

    Returns:
      Steps `[n]`, and values `[runs, n]`.
    """
    found = [series for run in self.runs if len((series := run.series(kind, metric))[0])]
    if not found:
      return np.zeros(0), np.zeros((1, 0))
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in found)))
    values = [smooth(values)[np.searchsorted(steps, common)] for steps, values in found]
    return np.array(common), np.array(values).reshape(len(found), len(common))


def by_config(runs: Sequence[Run]) -> list[Seeds]:
  """The runs in groups that differ only in the fields `seed` and `data.seed`, in the order of their first runs.

  Vocabularies are the same if their content is: each run's config names the copy in its own folder.
  """
  groups: dict[str, list[Run]] = {}
  for run in runs:
    tree = as_mapping(run.trained.config)
    others = tree | {
      "seed": None,
      "data": tree["data"] | {"seed": None, "vocabulary": run.trained.vocabulary["fingerprint"]},
    }
    groups.setdefault(repr(others), []).append(run)
  return [Seeds(tuple(group)) for group in groups.values()]


def spread_text(values: Sequence[float] | np.ndarray, digits: str = ".4f") -> str:
  """The mean of at least two values, its standard error, and in brackets the lowest and the highest value."""
  error = np.std(values, ddof=1) / math.sqrt(len(values))
  return f"{np.mean(values):{digits}} ± {error:{digits}} ({min(values):{digits}} to {max(values):{digits}})"
