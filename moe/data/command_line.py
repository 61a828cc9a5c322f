"""The options of scripts that read a corpus: a config's data section, or a source by itself."""

import argparse
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from moe.config import ConfigError, build
from moe.data.data_config import DataConfig

_FIELDS = (
  "source",
  "extra_ids",
  "path",
  "validation_path",
  "validation_fraction",
  "task",
  "data_dir",
  "text_key",
  "train_split",
  "validation_split",
  "modules",
)


def add_source_options(parser: argparse.ArgumentParser, sources: Sequence[str]) -> None:
  """Adds `--config`, `--source` with these choices, and what a source needs."""
  parser.add_argument("--config", help="a config file whose data section to use, instead of the options below")
  parser.add_argument("--source", choices=sources)
  parser.add_argument("--vocabulary", help="'bytes', the default, or a SentencePiece model; tokens have their own")
  parser.add_argument("--extra_ids", type=int, default=100, help="sentinels above the vocabulary's pieces")
  parser.add_argument("--path", default="", help="the glob of --source text, the directory of --source tokens")
  parser.add_argument("--validation_path", default="", help="a glob for validation text")
  parser.add_argument("--validation_fraction", type=float, default=0.05, help="of the documents, without such a glob")
  parser.add_argument("--task", default="", help="the seqio or TFDS name of --source task")
  parser.add_argument("--data_dir", default="", help="the TFDS directory of --source task")
  parser.add_argument("--text_key", default="text", help="the field of JSON lines or TFDS that holds the text")
  parser.add_argument("--train_split", default="train", help="the task's name of the training split")
  parser.add_argument("--validation_split", default="validation", help="the task's name of the validation split")
  parser.add_argument("--modules", nargs="*", default=(), help="modules that register the task")


def source_config(options: argparse.Namespace) -> DataConfig:
  """The `DataConfig` that `add_source_options` were given.

  Raises:
    ConfigError: the first wrong option, or what is wrong with the config file.
  """
  if options.config:
    return build(DataConfig, _load(options.config)["data"], "config.data")
  given = {name: getattr(options, name) for name in _FIELDS}
  given["vocabulary"] = options.vocabulary or ("" if options.source == "tokens" else "bytes")
  # The lengths belong to training; documents are read whole.
  return build(DataConfig, {**given, "inputs_length": 512, "targets_length": 512, "batch_size": 1}, "options")


def _load(path: str) -> dict[str, Any]:
  """What the config file's `get_config` gives, as nested dicts."""
  if not os.path.isfile(path):
    raise ConfigError("--config", path, "no such file")
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config().to_dict()
