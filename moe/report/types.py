"""What a report knows of a run."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from moe.evaluation.restore import Trained
from moe.models.count import ParameterCounts
from moe.report import statistics
from moe.training.metrics_file import Record

# The warning that goes with every loss of a run whose routers may see the future.
LEAKS = "future leakage"

# Arrays `[B, T]` by name.
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one MoE layer did with n real tokens, in the order of the text.

  Attributes:
    ids: int32 `[n]`, what the layer's stack read; of pictures the number of the patch.
    positions: int32 `[n]`, each token's position in its own sequence, from 0.
    weights: float32 `[n, E]`, what each expert's output is multiplied by.
    chosen: bool `[n, E]`, which experts count as the token's: those with a weight, or in soft routing those with a
      weight above an even share, 1 / E.
    soft: whether it is soft routing.
  """

  ids: np.ndarray
  positions: np.ndarray
  weights: np.ndarray
  chosen: np.ndarray
  soft: bool

  @property
  def experts(self) -> int:
    return self.chosen.shape[1]

  @property
  def load(self) -> np.ndarray:
    """`[E]`, each expert's share of the assignments; in soft routing of the weights."""
    return statistics.shares(self.weights if self.soft else self.chosen)


@dataclasses.dataclass(frozen=True)
class Churn:
  """How the assignments changed from the checkpoint before to the one at `step`.

  Attributes:
    step: of the later checkpoint.
    distance: between the two sets of assignments, `statistics.churn`.
    random: the distance between two unrelated sets of these sizes.
  """

  step: int
  distance: float
  random: float


@dataclasses.dataclass(frozen=True, eq=False)
class PictureMaps:
  """What the MoE layers of a model did with the patches of N pictures.

  Attributes:
    images: of each a URL that holds it.
    labels: of each the name of its class.
    side: patches in a row of a picture, and in a column.
    layers: by `encoder/layer_I`, float32 `[N, side * side, E]` from 0 to 1: 1 for the patches that an expert takes, or
      in soft routing for the patch that weighs most in its slots.
    soft: whether it is soft routing.
  """

  images: list[str]
  labels: list[str]
  side: int
  layers: dict[str, np.ndarray]
  soft: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run of a report.

  Attributes:
    name: short, and unique in the report.
    trained: the latest checkpoint.
    parameters: of its model.
    records: of `metrics.jsonl`.
    batches: the validation (micro-)batches that the routers were shown.
    layers: by `STACK/layer_I`, the encoder's first; empty for a dense model.
    churn: by layer, oldest first.
    unreadable: steps of older checkpoints that are damaged.
    texts: of every id in `layers`; of pictures the name of every patch.
    maps: of a model with routers that reads pictures; else None.
  """

  name: str
  trained: Trained
  parameters: ParameterCounts
  records: list[Record]
  batches: list[Batch]
  layers: dict[str, Layer]
  churn: dict[str, list[Churn]]
  unreadable: list[int]
  texts: dict[int, str]
  maps: PictureMaps | None = None

  @property
  def leaks(self) -> str:
    """What goes with a loss of a run that may know the future, "" for one that does not."""
    model = self.trained.config.model
    if model.leaks_future and not model.evaluates_on_future:
      return f"{LEAKS} in training"
    return LEAKS if model.leaks_future else ""

  @property
  def label(self) -> str:
    """The name, with the words that go with every loss of a run that leaks."""
    return f"{self.name} ({self.leaks})" if self.leaks else self.name

  @property
  def tokens_per_second(self) -> float | None:
    """Median over the training records; None if there is none."""
    values = self.series("train", "tokens_per_second")[1]
    return float(np.median(values)) if len(values) else None

  @property
  def seconds(self) -> float | None:
    """Wall time from each start of the run to its last record, summed over starts; None where it was not recorded.

    What a stopped run did after the checkpoint that it was resumed from is not counted.
    """
    values = [record["seconds"] for record in self.records if "seconds" in record]
    ends = [now for now, after in itertools.pairwise([*values, 0.0]) if after < now]
    return sum(ends) if values else None

  def series(self, kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric in the records of one kind, without values that JSON cannot hold, such as NaN.

    Returns:
      `[n]` and `[n]`, or `[n]` and `[n, E]` where the metric has a value for each expert.
    """
    found = [(record["step"], record[metric]) for record in self.records if record["kind"] == kind and metric in record]
    finite = [(step, value) for step, value in found if not any(isinstance(x, str) for x in np.ravel(value).tolist())]
    return np.array([step for step, _ in finite]), np.array([value for _, value in finite], float)
