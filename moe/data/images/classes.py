"""The vocabulary of a data set of pictures: its classes."""

import hashlib
from collections.abc import Sequence

import numpy as np

from moe.data.errors import DataError


class ClassVocabulary:
  """An id per class. It has no text: a picture's target is one id, the label.

  Attributes:
    names: of the classes, in the order of their labels.
  """

  name, extra_ids, model = "classes", 0, None

  def __init__(self, names: Sequence[str]):
    self.names = tuple(names)
    self.size = len(self.names)
    self.fingerprint = hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape")).hexdigest()[:16]

  def encode(self, text: str) -> np.ndarray:
    raise DataError("classes", "are no text that could be encoded")

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    return ", ".join(self.names[i] for i in ids)

  def byte_lengths(self) -> np.ndarray:
    return np.zeros(self.size, np.int32)
