"""What the benchmarks' command lines share."""

import argparse
import json
import pathlib
from typing import Any


def positive(text: str) -> int:
  """An argument that counts something."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
  return int(text)


def add_small_model(parser: argparse.ArgumentParser, *, batch: int, length: int, about_length: str) -> None:
  """The sizes of `step_programs.small_config`, with these defaults of the batch."""
  parser.add_argument("--d_model", type=positive, default=256)
  parser.add_argument("--d_ff", type=positive, default=1024, help="hidden width of an expert")
  parser.add_argument("--layers", type=positive, default=4, help="blocks, every second with experts")
  parser.add_argument("--experts", type=positive, default=8)
  parser.add_argument("--top_k", type=positive, default=2, help="experts per token, and so the capacity factor")
  parser.add_argument("--batch", type=positive, default=batch, help="sequences")
  parser.add_argument("--length", type=positive, default=length, help=about_length)


def new_file(text: str) -> pathlib.Path:
  """An argument that names a results file: one that exists is never overwritten."""
  path = pathlib.Path(text)
  if path.exists():
    raise argparse.ArgumentTypeError(f"{text} exists; name a new file")
  return path


def write(results: dict[str, Any], path: pathlib.Path) -> None:
  """Writes a results file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(results, indent=1) + "\n")
