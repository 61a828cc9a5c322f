"""What to read, how to make examples of it, and how many at a time."""

import dataclasses
from typing import Literal

from moe.config import require

Architecture = Literal["encoder_decoder", "decoder"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The data of a run. Lengths are in tokens, EOS included; a decoder's rows are `inputs_length + targets_length` long.

  source: "standard_library" (the text of the running Python itself, needs nothing), "text" (files by a glob), "task"
    (a registered seqio task or a TFDS name) or "tokens" (a directory made by scripts/tokenize_corpus.py).
  vocabulary: "bytes" or the path of a SentencePiece model; "tokens" may leave it empty and use the directory's own.
  extra_ids: sentinel ids above a vocabulary's own pieces (T5 has 100), needed by span corruption.
  path: the glob of "text", the directory of "tokens".
  validation_path: a glob for validation text; empty holds out `validation_fraction` of the documents of `path`.
  task, data_dir, text_key, modules: the task's name, the TFDS directory, the feature that holds plain text (also the
    field of JSON lines), and Python modules to import first because they register the task.
  train_split, validation_split: the task's names of the two splits.
  noise_density, mean_noise_span: span corruption's, by default T5's.
  streams: independent row streams, best a multiple of the number of hosts, for each reads those that its rows come
    from. Part of the config, so that batches and the input position mean the same on any number of hosts.
  pack: several examples in one row, apart in attention and positions.
  prefetch: batches made ahead of the device.
  """

  source: Literal["standard_library", "text", "task", "tokens"]
  inputs_length: int
  targets_length: int
  batch_size: int
  objective: Literal["prefix_lm", "causal_lm", "span_corruption", "text_to_text"] = "prefix_lm"
  vocabulary: str = ""
  extra_ids: int = 100
  path: str = ""
  validation_path: str = ""
  validation_fraction: float = 0.05
  task: str = ""
  data_dir: str = ""
  text_key: str = "text"
  modules: tuple[str, ...] = ()
  train_split: str = "train"
  validation_split: str = "validation"
  noise_density: float = 0.15
  mean_noise_span: float = 3.0
  streams: int = 1
  pack: bool = True
  shuffle: bool = True
  seed: int = 0
  prefetch: int = 4

  def __post_init__(self):
    self._check_source()
    self._check_objective()
    for name in ("batch_size", "streams", "prefetch"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
    require(
      self.batch_size % self.streams == 0,
      "batch_size",
      self.batch_size,
      f"must be a multiple of streams = {self.streams}",
    )
    require(self.seed >= 0, "seed", self.seed, "must not be negative")

  def _check_source(self):
    needs_path = self.source in ("text", "tokens")
    meaning = "the glob of the text files" if self.source == "text" else "the directory made by tokenize_corpus.py"
    require(bool(self.path) == needs_path, "path", self.path, _wanted(needs_path, self.source, meaning))
    is_task = self.source == "task"
    wanted = _wanted(is_task, self.source, "the name of a seqio task or TFDS data set")
    require(bool(self.task) == is_task, "task", self.task, wanted)
    require(is_task or not self.modules, "modules", self.modules, "only the source 'task' imports modules")
    require(is_task or not self.data_dir, "data_dir", self.data_dir, "only the source 'task' has one")
    require(
      self.source == "text" or not self.validation_path, "validation_path", self.validation_path, "only for 'text'"
    )
    require(
      bool(self.vocabulary) or self.source == "tokens",
      "vocabulary",
      self.vocabulary,
      "must be 'bytes' or the path of a SentencePiece model",
    )
    require(
      0 < self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "must be between 0 and 1"
    )
    require(self.extra_ids >= 0, "extra_ids", self.extra_ids, "must not be negative")

  def _check_objective(self):
    causal = self.objective == "causal_lm"
    least = 0 if causal else 2
    wanted = "must be 0: a causal language model has no inputs" if causal else f"must be at least {least}"
    require(
      self.inputs_length >= least and not (causal and self.inputs_length), "inputs_length", self.inputs_length, wanted
    )
    require(self.targets_length >= 2, "targets_length", self.targets_length, "must be at least 2")
    require(0 < self.noise_density < 1, "noise_density", self.noise_density, "must be between 0 and 1")
    require(self.mean_noise_span >= 1, "mean_noise_span", self.mean_noise_span, "must be at least 1")


def _wanted(needed: bool, source: str, meaning: str) -> str:
  return f"source {source!r} needs {meaning}" if needed else f"source {source!r} has none; leave it empty"
