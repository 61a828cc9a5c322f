"""Prefix language modeling (Raffel et al. 2020, section 3.2.1): read the first part of a window, predict the second."""

import dataclasses

import numpy as np

from moe.data.batch import RowShape
from moe.data.documents import Documents
from moe.data.objective import Key, Objective, ObjectiveConfig
from moe.data.vocabulary import Vocabulary
from moe.data.windows import cut_windows


@dataclasses.dataclass(frozen=True)
class PrefixLMConfig(ObjectiveConfig, name="prefix_lm"):
  """Windows of `inputs_length + targets_length` tokens, split at random."""

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    return lambda documents, key: PrefixExamples(documents, shape.inputs_length, shape.targets_length, key)

  def prompt(self, ids: np.ndarray, shape: RowShape) -> np.ndarray:
    """The end of the text, which is what the targets continue: windows begin anywhere in a document."""
    return ids[-shape.inputs_length :]


class PrefixExamples:
  """A window split in two.

  The split is uniform among all that fit. A full window has only one, so its row has no padding.
  """

  def __init__(self, documents: Documents, inputs_length: int, targets_length: int, key: Key):
    self._windows = cut_windows(documents.targets, inputs_length + targets_length, shortest=2, eos=True)
    length = self._windows.length
    low, high = np.maximum(1, length - targets_length), np.minimum(inputs_length, length - 1)
    pivot = np.random.default_rng(key).integers(low, high + 1)
    self.lengths = np.stack([pivot, length - pivot], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, pivot = self._windows.tokens(i), self.lengths[i, 0]
    return tokens[:pivot], tokens[pivot:]
