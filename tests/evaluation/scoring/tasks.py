"""Tasks in memory, of the interface of `moe.data.tasks`, and runs that score them."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moe.config import as_mapping
from moe.data import DataError, load_vocabulary
from moe.training.experiment import ExperimentConfig, load_config
from tests.training.tiny import tiny_decoder, tiny_mapping, tiny_stack

BYTES = load_vocabulary("bytes", 0)
LABELS = ("no", "yes", "it is")


@dataclasses.dataclass(frozen=True)
class Example:
  inputs: np.ndarray
  text: str
  target: Any
  features: Mapping[str, Any]


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
  return {"accuracy": sum(t == p for t, p in zip(targets, predictions)) / len(targets)}


def share_of_yes(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
  return {"yes": predictions.count(1) / len(predictions)}


@dataclasses.dataclass(frozen=True)
class Task:
  """A task whose labels are numbers, with (text, label) pairs by split."""

  splits: Mapping[str, Sequence[tuple[str, int | None]]]
  name: str = "animals"
  labels: tuple[str, ...] = LABELS
  metric: str = "accuracy"

  def evaluate(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    return accuracy(targets, predictions) | share_of_yes(targets, predictions)

  def postprocess(self, text: str, example: Example) -> int:
    return self.labels.index(text) if text in self.labels else -1

  def server_file(self, examples: Sequence[Example], predictions: Sequence[int], split: str) -> tuple[str, str]:
    return "animals.tsv", "".join(f"{one.features['idx']}\t{answer}\n" for one, answer in zip(examples, predictions))

  def examples(self, split: str) -> Iterator[Example]:
    if split not in self.splits:
      raise DataError(f"split {split!r}", f"expected one of {', '.join(self.splits)}, the splits of {self.name}")
    for number, (text, label) in enumerate(self.splits[split]):
      yield Example(BYTES.encode(text), text, label, {"idx": number})


def texts(count: int, longest: int, seed: int = 0) -> list[str]:
  """Different words of 1 to `longest` letters."""
  draw, found = random.Random(seed), {}
  while len(found) < count:
    found["".join(draw.choices("abcdefgh", k=draw.randint(1, longest)))] = None
  return list(found)


def task(count: int = 12, longest: int = 14, labels: int = 3, **changes) -> Task:
  """Words with labels in turn, the same on both splits that are scored."""
  pairs = [(text, number % labels) for number, text in enumerate(texts(count, longest))]
  return Task({"train[90%:]": pairs, "validation": pairs}, labels=LABELS[:labels], **changes)


def config(
  corpus="", *, decoder_only: bool = False, encoder=None, decoder=None, score: dict | None = None, train=None, **model
) -> ExperimentConfig:
  """The tiny experiment, on pairs of a task that no test reads through it."""
  mapping = tiny_mapping(corpus, **(train or {}))
  if decoder_only:
    mapping["model"] = tiny_decoder(mapping, decoder, allow_future_leakage=True, **model)
  else:
    stacks = {"encoder": tiny_stack(encoder), "decoder": tiny_stack(decoder), "allow_future_leakage": True}
    mapping["model"] |= stacks | model
  mapping["data"] |= {"source": {"name": "task", "task": "animals"}, "objective": "text_to_text"}
  return load_config(mapping | {"score": score or {}})


STEPS = {"steps": 60, "log_every": 60, "eval_every": 20, "checkpoint_every": 20, "keep": 1}


def run_config(train=STEPS, *, decoder_only: bool = False, **score) -> ExperimentConfig:
  """A run that trains on the twelve pairs that it is scored on."""
  mapping = as_mapping(config(decoder_only=decoder_only, train=train, score={"batch_size": 8} | score))
  mapping["data"]["source"]["modules"] = ["tests.evaluation.scoring.seqio_task"]
  mapping["data"]["batch_size"] = 12
  return load_config(mapping)
