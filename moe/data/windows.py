"""Documents cut into windows for objectives to make examples of, without losing a token."""

import dataclasses

import numpy as np

from moe.data.documents import Ragged
from moe.data.vocabulary import EOS


@dataclasses.dataclass(frozen=True)
class Windows:
  """Window i is `length[i]` tokens of document `document[i]`, beginning at token `start[i]`; all [n] int64."""

  documents: Ragged
  document: np.ndarray
  start: np.ndarray
  length: np.ndarray

  def __len__(self) -> int:
    return len(self.length)

  def tokens(self, i: int) -> np.ndarray:
    """The ids of window i, [length[i]] int32; EOS where the window extends past the document's end."""
    ids = self.documents[self.document[i]]
    start = self.start[i]
    window = ids[start : start + self.length[i]]
    if len(window) < self.length[i]:
      return np.append(window, EOS).astype(np.int32)
    return window.astype(np.int32)


def cut_windows(documents: Ragged, longest: int, shortest: int, eos: bool) -> Windows:
  """Consecutive windows of each document, `longest` tokens each, with the rest in the last.

  A last window shorter than `shortest` takes one token from the window before it, so nothing is lost. A document that
  is itself shorter, or empty, gives no window.

  Args:
    documents: token ids.
    longest: tokens per window.
    shortest: 1 or 2, the fewest tokens of a window.
    eos: whether every document is one token longer, its EOS.
  """
  lengths = np.where(documents.lengths > 0, documents.lengths + int(eos), 0)
  lengths = np.where(lengths >= shortest, lengths, 0)
  counts = -(-lengths // longest)
  document = np.repeat(np.arange(len(lengths)), counts)
  index = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  start = index * longest
  end = np.minimum(start + longest, lengths[document])
  # Only the last window of a document can be short, and the window before it is full.
  short = np.flatnonzero(end - start < shortest)
  start[short] -= 1
  end[short - 1] -= 1
  return Windows(documents, document, start, end - start)
