"""A small corpus in several forms, and pipelines of it."""

import json

import numpy as np
import pytest

from moe.config import build
from moe.data import DataConfig, SourceConfig, documents
from moe.data.formats import seqio_mixture, seqio_reading
from moe.data.sources import text, tokens

WORDS = ("expert", "token", "router", "chooses", "é", "naïve", "the", "of", "\n", "\n\n", "    ", "\t", "0.1", "→")


def make_texts(number: int, seed: int = 0) -> list[str]:
  """Different texts of 1 to about 400 characters."""
  rng = np.random.default_rng(seed)
  return [f"{i}: " + " ".join(rng.choice(WORDS, rng.integers(0, 60))) for i in range(number)]


def write_json_lines(path, records) -> None:
  path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path) -> str:
  """The glob of three JSON-lines files of 12 documents each."""
  folder = tmp_path / "corpus"
  folder.mkdir()
  for number in range(3):
    write_json_lines(folder / f"{number}.jsonl", ({"text": text} for text in make_texts(12, number)))
  return str(folder / "*.jsonl")


@pytest.fixture
def small_blocks(monkeypatch) -> None:
  """Blocks of 5 documents, so that a small corpus has many."""
  for module in (documents, text, tokens):
    monkeypatch.setattr(module, "BLOCK_DOCUMENTS", 5)
  for module in (seqio_mixture, seqio_reading):
    monkeypatch.setattr(module, "BLOCK_EXAMPLES", 5)


def make_config(source: SourceConfig | str, **changes) -> DataConfig:
  """A small config; sources and objectives may be given by name."""
  fields = {"vocabulary": "bytes", "inputs_length": 24, "targets_length": 16, "batch_size": 4}
  return build(DataConfig, {"source": source} | fields | changes)


def segments(batch: dict, name: str) -> list[list[int]]:
  """The ids of every packed example of `name`, in order."""
  found = []
  for ids, numbers in zip(batch[name], batch[f"{name}_segments"]):
    found += [ids[numbers == number].tolist() for number in range(1, numbers.max() + 1)]
  return found


def assert_same_batches(first: dict, second: dict) -> None:
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert first[name].dtype == second[name].dtype
