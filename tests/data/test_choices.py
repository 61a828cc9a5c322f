"""A new source and a new objective are one class each, found by name."""

import dataclasses

import numpy as np
import pytest

from moe.config import as_mapping, build
from moe.data import DataConfig, ObjectiveConfig, SourceConfig, make_pipeline, validation_text
from moe.data.source import TextSource
from tests.data.conftest import segments


@pytest.fixture
def squares():
  """Registers a source of text, for one test."""

  @dataclasses.dataclass(frozen=True)
  class SquaresConfig(SourceConfig, name="squares"):
    numbers: int

    def make(self, split, vocabulary, lengths, seed):
      return Squares(vocabulary, range(split == "validation", self.numbers, 2))

  class Squares(TextSource):
    num_shards = 1

    def __init__(self, vocabulary, numbers):
      super().__init__(vocabulary)
      self.numbers, self.fingerprint = numbers, str(numbers)

    def texts(self, shard):
      return (str(number**2) for number in self.numbers)

  yield SquaresConfig
  del SourceConfig.choices["squares"]


@pytest.fixture
def reversal():
  """Registers an objective, for one test: read a document, predict it backwards."""

  @dataclasses.dataclass(frozen=True)
  class ReversalConfig(ObjectiveConfig, name="reversal"):
    separator: int = 1

    def make(self, shape, vocabulary):
      return lambda documents, key: Reversed(documents.targets, self.separator)

  class Reversed:
    def __init__(self, documents, separator):
      self.documents, self.separator = documents, separator
      self.lengths = np.stack([documents.lengths, documents.lengths + 1], axis=1)

    def __getitem__(self, i):
      ids = self.documents[i]
      return ids, np.append(ids[::-1], self.separator).astype(np.int32)

  yield ReversalConfig
  del ObjectiveConfig.choices["reversal"]


def test_a_new_source_and_a_new_objective_give_batches(squares, reversal):
  fields = {"inputs_length": 24, "targets_length": 32, "batch_size": 4, "vocabulary": "bytes"}
  choices = {"source": {"name": "squares", "numbers": 40}, "objective": {"name": "reversal", "separator": 2}}
  config = build(DataConfig, fields | choices)
  assert (config.source, config.objective) == (squares(40), reversal(2))
  assert build(DataConfig, as_mapping(config)) == config
  found = []
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    while len(found) < 20:
      batch = next(pipeline)
      for inputs, targets in zip(segments(batch, "inputs"), segments(batch, "targets"), strict=True):
        assert targets == [*inputs[::-1], 2]
        found.append(bytes(np.array(inputs, np.uint8) - 3).decode())
  assert sorted(found[:20]) == sorted(str(number**2) for number in range(0, 40, 2))
  assert validation_text(config) == "".join(str(number**2) for number in range(1, 40, 2)).encode()
