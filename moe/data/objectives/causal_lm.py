"""Causal language modeling: predict every token of a document from those before it."""

import dataclasses

import numpy as np

from moe.config import require
from moe.data.batch import RowShape
from moe.data.documents import Documents
from moe.data.objective import Objective, ObjectiveConfig
from moe.data.vocabulary import Vocabulary
from moe.data.windows import cut_windows


@dataclasses.dataclass(frozen=True)
class CausalLMConfig(ObjectiveConfig, name="causal_lm"):
  """Needs rows of one sequence, without inputs."""

  has_inputs = False

  def check(self, inputs_length: int, targets_length: int) -> None:
    require(
      inputs_length == 0, "inputs_length", inputs_length, "expected 0, since a causal language model has no inputs"
    )
    require(targets_length >= 2, "targets_length", targets_length, "expected at least 2")

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    return lambda documents, key: CausalExamples(documents, shape.targets_length)

  def prompt(self, ids: np.ndarray, shape: RowShape) -> np.ndarray:
    """The end of the text, as long as a window: windows begin anywhere in a document."""
    return ids[-shape.targets_length :]


class CausalExamples:
  """Every token of a document and its EOS, once, in windows as long as a row; inputs are empty."""

  def __init__(self, documents: Documents, longest: int):
    self._windows = cut_windows(documents.targets, longest, shortest=1, eos=True)
    self.lengths = np.stack([np.zeros(len(self._windows), np.int64), self._windows.length], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int32), self._windows.tokens(i)
