"""Documents cut into windows that an objective can make examples of, without losing a token."""

import dataclasses

import numpy as np

from moe.data.documents import Ragged
from moe.data.vocabulary import EOS


@dataclasses.dataclass(frozen=True)
class Windows:
  """Window i is `length[i]` tokens of document `document[i]` from `start[i]` on; all [n] int64."""

  documents: Ragged
  document: np.ndarray
  start: np.ndarray
  length: np.ndarray

  def __len__(self) -> int:
    return len(self.length)

  def tokens(self, i: int) -> np.ndarray:
    """Window i's ids [length[i]] int32; EOS where the window reaches past the document's end."""
    ids = self.documents[self.document[i]]
    start = self.start[i]
    window = ids[start : start + self.length[i]]
    if len(window) < self.length[i]:
      return np.append(window, EOS).astype(np.int32)
    return window.astype(np.int32)


def cut(documents: Ragged, longest: int, shortest: int, eos: bool) -> Windows:
  """Consecutive windows of each document, `longest` tokens each and the rest in the last.

  eos: every document is one longer, by its EOS. A last window of fewer than `shortest` (1 or 2) tokens takes one of
  the window before, so that nothing is lost; a document that is shorter itself, or empty, gives no window.
  """
  lengths = np.where(documents.lengths > 0, documents.lengths + int(eos), 0)
  lengths = np.where(lengths >= shortest, lengths, 0)
  counts = -(-lengths // longest)
  document = np.repeat(np.arange(len(lengths)), counts)
  index = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  start = index * longest
  end = np.minimum(start + longest, lengths[document])
  # Only the last window of its document can be short, and the window before it is full.
  short = np.flatnonzero(end - start < shortest)
  start[short] -= 1
  end[short - 1] -= 1
  return Windows(documents, document, start, end - start)
