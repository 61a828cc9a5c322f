"""From documents to examples: what the model reads and what it must write.

Each objective first says how long every example of a block is, so that rows can be packed, and makes an example only
when its row is wanted. All randomness comes from a key of integers (seed, epoch, shard, block), never from what was
made before: an example is the same whether the run was interrupted or not.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from moe.config import require
from moe.data import windows
from moe.data.data_config import Architecture, DataConfig
from moe.data.documents import Documents
from moe.data.span_corruption import Noise, corrupt
from moe.data.vocabulary import EOS, Vocabulary

Key = tuple[int, ...]


class Examples(Protocol):
  """The examples of one block. lengths: [n, 2] int64, of each one's inputs and targets."""

  lengths: np.ndarray

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Example i: inputs and targets, int32."""


Objective = Callable[[Documents, Key], Examples]


def make_objective(
  config: DataConfig, architecture: Architecture, vocabulary: Vocabulary, supervised: bool
) -> Objective:
  """The config's objective, after checking that architecture, vocabulary and source can serve it.

  Raises:
    ConfigError: the objective needs another architecture, more sentinels, longer rows, or a source of pairs.
  """
  name = config.objective
  pairs = name == "text_to_text"
  have, wanted = (
    ("pairs of inputs and targets", "'text_to_text'") if supervised else ("plain text", "another objective")
  )
  require(pairs == supervised, "objective", name, f"the source gives {have}, which needs {wanted}")
  if name == "causal_lm":
    require(architecture == "decoder", "objective", name, "needs the architecture 'decoder'")
    return lambda documents, key: CausalExamples(documents, config.targets_length)
  if name == "prefix_lm":
    return lambda documents, key: PrefixExamples(documents, config.inputs_length, config.targets_length, key)
  if name == "text_to_text":
    return lambda documents, key: PairExamples(documents, config.inputs_length, config.targets_length)
  noise = Noise(config.noise_density, config.mean_noise_span)
  longest = _noise_window(config, noise, vocabulary)
  return lambda documents, key: SpanExamples(documents, noise, longest, vocabulary.size - 1, key)


def _noise_window(config: DataConfig, noise: Noise, vocabulary: Vocabulary) -> int:
  longest = noise.window(config.inputs_length)
  require(longest >= 3, "inputs_length", config.inputs_length, "is too short for span corruption")
  targets = int(noise.lengths(longest)[1])
  wanted = f"must be at least {targets}, what span corruption makes of inputs_length = {config.inputs_length}"
  require(config.targets_length >= targets, "targets_length", config.targets_length, wanted)
  spans = int(noise.spans(longest))
  wanted = f"must be at least {spans}, the spans of a window of {longest} tokens"
  require(vocabulary.extra_ids >= spans, "extra_ids", vocabulary.extra_ids, wanted)
  return longest


class CausalExamples:
  """Every token of a document and its EOS, once, in windows of a row's length; nothing is read first."""

  def __init__(self, documents: Documents, longest: int):
    self._windows = windows.cut(documents.targets, longest, shortest=1, eos=True)
    self.lengths = np.stack([np.zeros(len(self._windows), np.int64), self._windows.length], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int32), self._windows.tokens(i)


class PrefixExamples:
  """A window parted in two: the first part is read, the second written (Raffel et al. 2020, section 3.2.1).

  The parting is uniform among all that fit, and a full window has only one: its rows have no padding.
  """

  def __init__(self, documents: Documents, inputs_length: int, targets_length: int, key: Key):
    self._windows = windows.cut(documents.targets, inputs_length + targets_length, shortest=2, eos=True)
    length = self._windows.length
    low, high = np.maximum(1, length - targets_length), np.minimum(inputs_length, length - 1)
    pivot = np.random.default_rng(key).integers(low, high + 1)
    self.lengths = np.stack([pivot, length - pivot], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, pivot = self._windows.tokens(i), self.lengths[i, 0]
    return tokens[:pivot], tokens[pivot:]


class SpanExamples:
  """Span corruption of windows; EOS ends the inputs and the targets, as in T5, not the document."""

  def __init__(self, documents: Documents, noise: Noise, longest: int, first_sentinel: int, key: Key):
    self._windows = windows.cut(documents.targets, longest, shortest=2, eos=False)
    self._noise, self._first_sentinel, self._key = noise, first_sentinel, key
    self.lengths = noise.lengths(self._windows.length)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = self._windows.tokens(i)
    mask = self._noise.mask(len(tokens), np.random.default_rng((*self._key, i)))
    inputs, targets = corrupt(tokens, mask, self._first_sentinel)
    return np.append(inputs, np.int32(EOS)), np.append(targets, np.int32(EOS))


class PairExamples:
  """A task's inputs and targets, each trimmed to leave room for the EOS that ends it."""

  def __init__(self, documents: Documents, inputs_length: int, targets_length: int):
    self._documents = documents
    limits = (inputs_length, targets_length)
    both = (documents.inputs, documents.targets)
    self.lengths = np.stack([np.minimum(part.lengths + 1, limit) for part, limit in zip(both, limits)], axis=1)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    both = (self._documents.inputs, self._documents.targets)
    inputs, targets = (np.append(part[i][: n - 1], EOS).astype(np.int32) for part, n in zip(both, self.lengths[i]))
    return inputs, targets
