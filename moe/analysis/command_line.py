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
