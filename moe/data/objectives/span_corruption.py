"""T5's span corruption (Raffel et al. 2020, section 3.1.4): replace spans by sentinels, predict what they stood for.

The number of noise tokens and spans depends only on the window's length. The lengths of inputs and targets are
therefore known before anything is drawn, and full windows fill both exactly: with T5's settings 568 tokens become 512
and 114.
"""

import dataclasses
import functools

import numpy as np

from moe.config import require
from moe.data.batch import RowShape
from moe.data.documents import Documents
from moe.data.objective import Key, Objective, ObjectiveConfig, ended
from moe.data.vocabulary import Vocabulary
from moe.data.windows import cut_windows


@dataclasses.dataclass(frozen=True)
class SpanCorruptionConfig(ObjectiveConfig, name="span_corruption"):
  """T5's settings by default.

  Attributes:
    noise_density: the fraction of tokens dropped.
    mean_noise_span: the mean length of a dropped span, in tokens.
  """

  noise_density: float = 0.15
  mean_noise_span: float = 3.0

  def __post_init__(self):
    require(0 < self.noise_density < 1, "noise_density", self.noise_density, "expected between 0 and 1")
    require(self.mean_noise_span >= 1, "mean_noise_span", self.mean_noise_span, "expected at least 1")

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    noise = Noise(self.noise_density, self.mean_noise_span)
    longest = noise.window(shape.inputs_length)
    require(longest >= 3, "inputs_length", shape.inputs_length, "expected more for span corruption")
    targets, spans = int(noise.lengths(longest)[1]), int(noise.spans(longest))
    expected = f"expected at least {targets}, the targets of inputs_length = {shape.inputs_length}"
    require(shape.targets_length >= targets, "targets_length", shape.targets_length, expected)
    expected = f"expected at least {spans}, the spans of a window of {longest} tokens"
    require(vocabulary.extra_ids >= spans, "extra_ids", vocabulary.extra_ids, expected)
    return lambda documents, key: SpanExamples(documents, noise, longest, vocabulary.size - 1, key)

  def prompt(self, ids: np.ndarray, shape: RowShape) -> np.ndarray:
    """The beginning of the text, and EOS."""
    return ended(ids, shape.inputs_length)


@dataclasses.dataclass(frozen=True)
class Noise:
  """How much of a window is dropped, and in how many spans.

  Attributes:
    density: the fraction of tokens dropped.
    mean_span: the mean length of a dropped span, in tokens.
  """

  density: float
  mean_span: float

  def tokens(self, length: np.ndarray | int) -> np.ndarray:
    """Noise tokens in a window of each length: at least one, never all."""
    return np.clip(np.round(length * self.density), 1, np.maximum(length - 1, 1)).astype(np.int64)

  def spans(self, length: np.ndarray | int) -> np.ndarray:
    """Noise spans in a window of each length; each needs a token of its own and a kept one before it."""
    noise = self.tokens(length)
    most = np.minimum(noise, np.maximum(length - noise, 1))
    return np.clip(np.round(noise / self.mean_span), 1, most).astype(np.int64)

  def lengths(self, length: np.ndarray | int) -> np.ndarray:
    """[..., 2]: the lengths of inputs and targets, EOS included."""
    noise, spans = self.tokens(length), self.spans(length)
    return np.stack([length - noise + spans + 1, noise + spans + 1], axis=-1)

  def window(self, inputs_length: int) -> int:
    """The length of the longest window whose inputs fit in `inputs_length`, which they then fill."""
    # Inputs contain at least all kept tokens, which bounds the search.
    candidates = np.arange(2, int(inputs_length / (1 - self.density)) + 8)
    return int(candidates[self.lengths(candidates)[:, 0] <= inputs_length].max(initial=0))

  def mask(self, length: int, rng: np.random.Generator) -> np.ndarray:
    """[length] bool, true for noise: kept and dropped spans alternate, each division into spans equally likely.

    As in T5, a window begins with a kept span and ends with a dropped one, so a single span has a fixed position.
    """
    noise, spans = _counts(self, length)
    kept, dropped = _partition(length - noise, spans, rng), _partition(noise, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, dropped], axis=1).reshape(-1))


class SpanExamples:
  """Span corruption of windows. As in T5, EOS ends the inputs and the targets, not the document."""

  def __init__(self, documents: Documents, noise: Noise, longest: int, first_sentinel: int, key: Key):
    self._windows = cut_windows(documents.targets, longest, shortest=2, eos=False)
    self._noise, self._first_sentinel, self._key = noise, first_sentinel, key
    self.lengths = noise.lengths(self._windows.length)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = self._windows.tokens(i)
    mask = self._noise.mask(len(tokens), np.random.default_rng((*self._key, i)))
    inputs, targets = corrupt(tokens, mask, self._first_sentinel)
    return ended(inputs, self.lengths[i, 0]), ended(targets, self.lengths[i, 1])


def corrupt(tokens: np.ndarray, mask: np.ndarray, first_sentinel: int) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets, without EOS.

  Args:
    tokens: [n] ids.
    mask: [n] bool, true for noise.
    first_sentinel: span j becomes `first_sentinel - j` in the inputs; the targets are each sentinel and then its span.
  """
  begins = mask & ~np.concatenate([[False], mask[:-1]])
  sentinels = first_sentinel - (np.cumsum(begins) - 1)
  inputs = np.where(begins, sentinels, tokens)[begins | ~mask]
  dropped, first = tokens[mask], np.flatnonzero(begins[mask])
  at = first + np.arange(len(first))  # each sentinel moves what follows by one
  targets = np.empty(len(dropped) + len(first), np.int32)
  targets[at] = sentinels[begins]
  targets[np.delete(np.arange(len(targets)), at)] = dropped
  return inputs.astype(np.int32), targets


@functools.cache
def _counts(noise: Noise, length: int) -> tuple[int, int]:
  """Noise tokens and spans of one length, cached because nearly all windows have the same."""
  return int(noise.tokens(length)), int(noise.spans(length))


def _partition(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """[parts] positive lengths that sum to `items`, every such partition equally likely."""
  cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [items]]))
