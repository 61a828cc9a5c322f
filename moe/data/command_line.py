"""The options of scripts that read a corpus: the data section of a config file, and fields of it."""

import argparse

from moe.config import build, override, parse_field
from moe.config_file import read_config_file
from moe.data.data_config import DataConfig
from moe.data.source import SourceConfig


def add_data_options(parser: argparse.ArgumentParser) -> None:
  """Adds `--config` and `--data`, for `parse_data`."""
  parser.add_argument("--config", default="", help="a config file whose data section to use")
  parser.add_argument(
    "--data",
    metavar="FIELD=VALUE",
    action="append",
    default=[],
    help="a field of the data section, such as source=text, then source.path=GLOB; repeat for several",
  )


def parse_data(options: argparse.Namespace) -> DataConfig:
  """The data section that `--config` and `--data` describe; without a vocabulary, the source's own or else "bytes".

  Raises:
    ConfigError: the first wrong field, or what is wrong with the config file.
  """
  # Lengths are for training: scripts read whole documents.
  defaults = {"inputs_length": 512, "targets_length": 512, "batch_size": 1}
  values = read_config_file(options.config).get("data", {}) if options.config else defaults
  values = override(values, map(parse_field, options.data))
  source = build(SourceConfig, values.get("source", {}), "config.data.source")
  values = {"vocabulary": "" if source.stores_vocabulary else "bytes"} | values | {"source": source}
  return build(DataConfig, values, "config.data")
