"""T5's span corruption (Raffel et al. 2020, section 3.1.4): drop spans, mark them by sentinels, predict what was there.

The number of noise tokens and spans depends on the window's length only, so that the lengths of inputs and targets are
known before anything is drawn, and full windows fill both exactly: 568 tokens become 512 and 114 in T5's setting.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
  """density: the fraction of tokens dropped. mean_span: their mean number in a row."""

  density: float
  mean_span: float

  def tokens(self, length: np.ndarray | int) -> np.ndarray:
    """Noise tokens in a window of each length, at least one and never all."""
    return np.clip(np.round(length * self.density), 1, np.maximum(length - 1, 1)).astype(np.int64)

  def spans(self, length: np.ndarray | int) -> np.ndarray:
    """Noise spans in a window of each length; each needs one token of its own and one kept before it."""
    noise = self.tokens(length)
    return np.clip(np.round(noise / self.mean_span), 1, np.minimum(noise, np.maximum(length - noise, 1))).astype(
      np.int64
    )

  def lengths(self, length: np.ndarray | int) -> np.ndarray:
    """[..., 2]: the length of inputs and of targets, EOS included."""
    noise, spans = self.tokens(length), self.spans(length)
    return np.stack([length - noise + spans + 1, noise + spans + 1], axis=-1)

  def window(self, inputs_length: int) -> int:
    """The longest window whose inputs fit in `inputs_length`; they then fill it."""
    # Inputs keep at least the tokens that are no noise, which bounds the search.
    candidates = np.arange(2, int(inputs_length / (1 - self.density)) + 8)
    return int(candidates[self.lengths(candidates)[:, 0] <= inputs_length].max(initial=0))

  def mask(self, length: int, rng: np.random.Generator) -> np.ndarray:
    """[length] bool, true where noise: kept and dropped spans in turn, each split uniform among all.

    As in T5 a window begins with a kept span and ends with a dropped one; with a single span nothing is left to chance.
    """
    noise, spans = _counts(self, length)
    kept, dropped = _partition(length - noise, spans, rng), _partition(noise, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, dropped], axis=1).reshape(-1))


@functools.cache
def _counts(noise: Noise, length: int) -> tuple[int, int]:
  """Noise tokens and spans of one length; nearly all windows have the same."""
  return int(noise.tokens(length)), int(noise.spans(length))


def corrupt(tokens: np.ndarray, mask: np.ndarray, first_sentinel: int) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets without EOS.

  tokens: [n] ids. mask: [n] bool, true where noise. Span j becomes sentinel `first_sentinel - j` in the inputs; the
  targets are each sentinel followed by its span.
  """
  begins = mask & ~np.concatenate([[False], mask[:-1]])
  sentinels = first_sentinel - (np.cumsum(begins) - 1)
  inputs = np.where(begins, sentinels, tokens)[begins | ~mask]
  dropped, first = tokens[mask], np.flatnonzero(begins[mask])
  places = first + np.arange(len(first))  # each sentinel moves what follows by one
  targets = np.empty(len(dropped) + len(first), np.int32)
  targets[places] = sentinels[begins]
  targets[np.delete(np.arange(len(targets)), places)] = dropped
  return inputs.astype(np.int32), targets


def _partition(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """[parts] positive lengths that sum to `items`, each such partition as likely as another."""
  cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [items]]))
