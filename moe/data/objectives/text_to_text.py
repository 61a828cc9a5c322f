"""Text to text (Raffel et al. 2020): a task's own inputs and targets."""

import dataclasses

import numpy as np

from moe.data.batch import RowShape
from moe.data.documents import Documents
from moe.data.objective import Objective, ObjectiveConfig, ended
from moe.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class TextToTextConfig(ObjectiveConfig, name="text_to_text"):
  """Needs a source of pairs."""

  reads_pairs = True

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    return lambda documents, key: PairExamples(documents, shape.inputs_length, shape.targets_length)

  def prompt(self, ids: np.ndarray, shape: RowShape) -> np.ndarray:
    """The beginning of the inputs, after the task's own preprocessors (prefixes, case), and EOS."""
    return ended(ids, shape.inputs_length)


class PairExamples:
  """Inputs and targets, each trimmed to leave room for the EOS that ends it."""

  def __init__(self, documents: Documents, inputs_length: int, targets_length: int):
    self._documents = documents
    limits = (inputs_length, targets_length)
    both = (documents.inputs, documents.targets)
    self.lengths = np.stack([np.minimum(part.lengths + 1, limit) for part, limit in zip(both, limits)], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = self._documents.inputs, self._documents.targets
    return ended(inputs[i], self.lengths[i, 0]), ended(targets[i], self.lengths[i, 1])
