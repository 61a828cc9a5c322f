"""Command-line arguments and results files of the benchmarks."""

import argparse
import json
import pathlib
import platform
from typing import Any

import jax


def positive_int(text: str) -> int:
  """An argument of at least 1."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: expected a positive whole number")
  return int(text)


def absent_path(text: str) -> pathlib.Path:
  """An argument that names a file (or folder) to write, which must not exist yet: nothing is ever replaced."""
  path = pathlib.Path(text)
  if path.exists():
    raise argparse.ArgumentTypeError(f"{text!r}: expected a path that does not exist")
  return path


def add_small_model(parser: argparse.ArgumentParser, *, batch: int, length: int, about_length: str) -> None:
  """Adds the sizes of `step_programs.small_config`, with these defaults for the batch."""
  parser.add_argument("--d_model", type=positive_int, default=256)
  parser.add_argument("--d_ff", type=positive_int, default=1024, help="hidden width of an expert")
  parser.add_argument("--layers", type=positive_int, default=4, help="blocks; every second has experts")
  parser.add_argument("--experts", type=positive_int, default=8)
  parser.add_argument("--top_k", type=positive_int, default=2, help="experts per token, also the capacity factor")
  parser.add_argument("--batch", type=positive_int, default=batch, help="sequences per batch")
  parser.add_argument("--length", type=positive_int, default=length, help=about_length)


def write_results(results: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a results file as JSON, with its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(results, indent=1) + "\n")


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
  """The settings of a results file: the options except file names, and the software and hardware."""
  settings = {name: value for name, value in vars(arguments).items() if name not in ("results", "figure")}
  return settings | {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "processor": platform.machine()}
