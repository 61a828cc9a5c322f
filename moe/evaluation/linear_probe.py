"""A few-shot linear probe: how much of the classes a ridge regression on a model's features knows from few pictures.

As in Dosovitskiy et al. 2021, V-MoE and Soft MoE, whose 10-shot accuracy is of such a probe on ImageNet.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from moe.config import require
from moe.data import DataConfig, DataError
from moe.evaluation.restore import Trained, check_vocabulary
from moe.training.feed import open_pipeline, open_vocabulary
from moe.training.state import merge

PENALTY = 1.0


@dataclasses.dataclass(frozen=True)
class LinearProbe:
  """A linear classifier: `features @ weights + intercept`, the class with the highest of these scores.

  Attributes:
    weights: float64 `[d, K]`.
    intercept: float64 `[K]`.
  """

  weights: np.ndarray
  intercept: np.ndarray

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """The classes, int `[n]`, of features `[n, d]`."""
    return np.argmax(features @ self.weights + self.intercept, axis=1)


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int, penalty: float = PENALTY) -> LinearProbe:
  """The ridge regression from features to 1 for a picture's class and -1 for all others, in closed form.

  `(X'X + penalty I) W = X'Y`, with X and Y less their means, so that the intercept is not penalised.

  Args:
    features: `[n, d]`.
    labels: int `[n]`, from 0.
    classes: K.
    penalty: of the sum of squared weights.
  """
  x = np.asarray(features, np.float64)
  y = 2.0 * (np.asarray(labels)[:, None] == np.arange(classes)) - 1
  mean_x, mean_y = x.mean(0), y.mean(0)
  x, y = x - mean_x, y - mean_y
  weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
  return LinearProbe(weights, mean_y - mean_x @ weights)


def few_shot_accuracy(trained: Trained, data: DataConfig, shots: int, split: str, penalty: float = PENALTY) -> float:
  """The accuracy on a split of a probe on the first `shots` pictures of each class of the training split.

  Features are what the model's own head reads. Pictures are not augmented.

  Args:
    trained: of a model that reads pictures.
    data: the pictures.
    shots: of each class.
    split: on which the probe is judged.
    penalty: as in `fit_probe`.

  Raises:
    ConfigError, DataError: something is wrong with the data, or a class has too few pictures.
  """
  require(shots >= 1, "--shots", shots, "expected at least 1 picture of each class")
  config = dataclasses.replace(trained.config, data=data, score=None)
  vocabulary = open_vocabulary(config)
  check_vocabulary(trained, vocabulary)

  @jax.jit
  def features(params, router_state, batch):
    model = merge(trained.graph, params, router_state)
    return model.pooled(model.encode(batch).x)

  def read(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features `[n, d]` and labels `[n]` of the pictures of a split, batch by batch."""
    with open_pipeline(config, split, training=False) as pipeline:
      for batch in pipeline:
        real = batch["inputs_segments"][:, 0] > 0
        found = np.asarray(features(trained.params, trained.router_state, batch))
        yield found[real], batch["targets"][real, 0]

  probe = fit_probe(*_shots(read("train"), vocabulary.size, shots), vocabulary.size, penalty)
  right = [probe(found) == labels for found, labels in read(split)]
  return float(np.concatenate(right).mean())


def _shots(batches: Iterator[tuple[np.ndarray, np.ndarray]], classes: int, shots: int) -> tuple[np.ndarray, np.ndarray]:
  """The features and labels of the first `shots` pictures of each class.

  Raises:
    DataError: there are fewer.
  """
  taken, found = np.zeros(classes, int), []
  for features, labels in batches:
    for one, label in zip(features, labels):
      if taken[label] < shots:
        taken[label] += 1
        found.append((one, label))
    if taken.min() == shots:
      chosen = sorted(found, key=lambda pair: pair[1])
      return np.stack([one for one, _ in chosen]), np.array([label for _, label in chosen])
  few = int(np.argmin(taken))
  raise DataError("split 'train'", f"holds {taken[few]} pictures of class {few}: expected at least --shots = {shots}")
