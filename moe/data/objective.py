"""From documents to examples: what the model reads and what it predicts.

An objective first computes the length of every example of a block, so that rows can be packed, and makes an example
only when its row is used. All randomness comes from a key of integers (seed, epoch, shard, block), so an example is the
same whether or not the run was interrupted.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from moe.config import Choice, require
from moe.data.batch import Examples, RowFormat, RowShape
from moe.data.documents import Documents
from moe.data.vocabulary import EOS, Vocabulary
from moe.row_format import PictureFormat

Key = tuple[int, ...]
Objective = Callable[[Documents, Key], Examples]


class ObjectiveConfig(Choice):
  """The section `data.objective`. Each objective is one file of `moe/data/objectives`, with a frozen dataclass.

  Attributes:
    reads_pairs: whether it reads documents with inputs and targets; otherwise it reads plain text.
    reads_pictures: whether it reads pictures and their labels instead.
    has_inputs: whether its examples have inputs, which a row of inputs and targets needs; a row of one sequence can do
      without.
  """

  reads_pairs: ClassVar[bool] = False
  reads_pictures: ClassVar[bool] = False
  has_inputs: ClassVar[bool] = True

  def check(self, inputs_length: int, targets_length: int) -> None:
    """Raises `ConfigError` unless rows of these lengths can hold an example."""
    require(inputs_length >= 2, "inputs_length", inputs_length, "expected at least 2")
    require(targets_length >= 2, "targets_length", targets_length, "expected at least 2")

  def check_format(self, row_format: RowFormat) -> None:
    """Raises `ConfigError` unless rows of this format can hold an example."""
    pictures = isinstance(row_format, PictureFormat)
    require(not pictures, "objective.name", self.name, "expected 'classification', since the model reads pictures")
    fits = self.has_inputs or row_format == "targets"
    expected = "expected an objective with inputs, since the model reads inputs and targets"
    require(fits, "objective.name", self.name, expected)

  def check_source(self, source: Any, shape: RowShape) -> None:
    """Raises `UserError` for what shows of the source before anything of it is made."""

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    """The function from a block of documents and a key to the block's examples.

    Raises:
      ConfigError: the objective needs longer rows, or more sentinels.
    """
    raise NotImplementedError

  def make_plain(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    """As `make`, for evaluation: without the augmentations of training, if there are any."""
    return self.make(shape, vocabulary)

  def prompt(self, ids: np.ndarray, shape: RowShape) -> np.ndarray:
    """What the model reads of a text before it writes: ended and cut as the inputs of training.

    Args:
      ids: int32 `[n]`, the text's, without EOS.
      shape: of the rows of training.
    """
    raise NotImplementedError


def ended(ids: np.ndarray, longest: int) -> np.ndarray:
  """int32, the beginning of `ids` and the EOS that ends it, together at most `longest` tokens."""
  return np.append(ids[: longest - 1], EOS).astype(np.int32)
