"""Config files and their overrides: `--config FILE --config.FIELD=VALUE ...` to nested mappings.

A config file is Python with a function `get_config` that returns an `ml_collections.ConfigDict`, or JSON, such as the
`config.json` of a workdir. The type of a field decides how the text of an override is read (`moe.config.Text`).
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from moe.config import ConfigError, Text, override


def split_configs(arguments: Sequence[str], *, alone: bool = False) -> tuple[list[list[str]], list[str]]:
  """Separates configs from the other arguments of a command line.

  Args:
    arguments: of the command line.
    alone: whether overrides may stand before any `--config`; the first config is then `--config=` and these.

  Returns:
    For each config `--config=FILE` and the `--config.FIELD=VALUE` that follow it; and all other arguments.

  Raises:
    ConfigError: an override stands before any `--config`, or lacks its value.
  """
  configs: list[list[str]] = [["--config="]] if alone else []
  others, rest = [], iter(arguments)
  for argument in rest:
    if argument in ("--config", "-config"):
      argument = f"--config={next(rest, '')}"
    if argument.startswith("--config="):
      configs.append([argument])
    elif argument.startswith("--config."):
      name, equals, _ = argument.partition("=")
      if not equals:
        raise ConfigError(name, None, f"expected {name}=VALUE")
      if not configs:
        raise ConfigError(name, argument.partition("=")[2], "expected --config FILE before it")
      configs[-1].append(argument)
    else:
      others.append(argument)
  return configs, others


def read_config(arguments: Sequence[str]) -> dict[str, Any]:
  """The tree of one of the configs that `split_configs` found.

  Raises:
    ConfigError: there is no such file, or it gives no config; an override of a field inside something else's value.
  """
  file, *overrides = arguments
  return override(read_config_file(file.partition("=")[2]), fields_of(overrides))


def fields_of(overrides: Sequence[str]) -> list[tuple[str, Text]]:
  """The dotted names and values of `--config.FIELD=VALUE`, for `moe.config.override`."""
  fields = (argument.removeprefix("--config.").partition("=") for argument in overrides)
  return [(name, Text(value)) for name, _, value in fields]


def read_config_file(path: str) -> dict[str, Any]:
  """What a config file holds, as nested mappings.

  Raises:
    ConfigError: there is no such file, it fails, or it gives no config; with the file's line where it has one.
  """
  given, path = path, os.path.expanduser(path)
  if not os.path.isfile(path):
    raise ConfigError("--config", given, "expected an existing file")
  if path.endswith(".json"):
    try:
      with open(path, encoding="utf-8") as file:
        values = json.load(file)
    except (ValueError, RecursionError, OSError) as error:
      raise ConfigError("--config", path, f"expected JSON ({error})") from None
  else:
    values = _from_python(path)
  if not isinstance(values, Mapping):
    raise ConfigError("--config", path, f"expected a config of sections, got {type(values).__name__}")
  return dict(values)


def _from_python(path: str) -> Any:
  spec = importlib.util.spec_from_file_location("moe_config_file", path)
  if spec is None or spec.loader is None:
    raise ConfigError("--config", path, "expected a file that ends in .py or .json")
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, os.getcwd())  # so that configs can import others: `from configs.pretrain import base`
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ConfigError("--config", path, "expected a function get_config()")
    config = module.get_config()
  except ConfigError:
    raise
  except (Exception, SystemExit) as error:  # a config file is a program: anything can go wrong in it
    what = " ".join(f"{type(error).__name__}: {error}".split())
    raise ConfigError("--config", path, f"line {_line(error, path)}: {what}") from None
  finally:
    sys.path.pop(0)
  return config.to_dict() if hasattr(config, "to_dict") else config


def _line(error: BaseException, path: str) -> int | str:
  """The last line of the file that the error passed through."""
  if isinstance(error, SyntaxError) and error.lineno:
    return error.lineno
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
  return next((line for line in reversed(lines) if line is not None), "?")
