"""Metrics on disk: `metrics.jsonl`, one JSON object per line, and TensorBoard's event files."""

import contextlib
import importlib.util
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from moe.data.quiet_import import quiet_import

Record = dict[str, Any]


def flatten_layers(layers: Mapping[str, Mapping[str, Any]]) -> Record:
  """Routers' metrics by stack and name, one row per layer, as `STACK/layer_I/NAME`; vectors become lists."""
  return {
    f"{stack}/layer_{index}/{name}": np.asarray(row).tolist()
    for stack, metrics in layers.items()
    for name, rows in metrics.items()
    for index, row in enumerate(np.asarray(rows))
  }


def read_metrics(path: pathlib.Path) -> list[Record]:
  """The records of a run in the order of their steps, the last one written for each step and kind.

  A run that was killed and resumed writes some steps twice. A line cut short by a kill, or any other that is no record,
  is ignored. There are none without the file.
  """
  records: dict[tuple[int, str], Record] = {}
  if not path.is_file():
    return []
  for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
    try:
      record = json.loads(line)
      step, kind = record["step"], record["kind"]
      if isinstance(step, int) and isinstance(kind, str):
        records[step, kind] = record
    except (ValueError, TypeError, KeyError):
      continue
  return [records[key] for key in sorted(records)]


class MetricsWriter:
  """Appends records to `metrics.jsonl` and, if TensorFlow is installed, to TensorBoard's files.

  Args:
    path: of the JSON lines.
    tensorboard: folder of the event files; None for none.
    leaks: the kinds of record whose loss may know the future; each of these says so.

  Every record also has `seconds`, the time since the writer was made: a resumed run counts from 0 again.
  """

  def __init__(self, path: pathlib.Path, tensorboard: pathlib.Path | None = None, leaks: Collection[str] = ()):
    self._leaks, self._began = leaks, time.monotonic()
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    self._file = path.open("a", encoding="utf-8")
    if torn:
      self._file.write("\n")
    self._tensorboard = tensorboard and _tensorboard(tensorboard)

  def write(self, step: int, kind: str, values: Record) -> None:
    """Appends one record; non-finite numbers become strings, because JSON has none."""
    mark = {"future_leakage": True} if kind in self._leaks else {}
    about = {"step": step, "kind": kind, "seconds": round(time.monotonic() - self._began, 3)}
    record = about | mark | values
    self._file.write(json.dumps({name: _finite(value) for name, value in record.items()}) + "\n")
    self._file.flush()
    prefix = "/".join([kind, *mark])
    scalars = {f"{prefix}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
    self._to_tensorboard(lambda writer: writer.write_scalars(step, scalars))

  def close(self) -> None:
    # On a full disk it tries the rest of the record again, about which `write` has raised.
    with contextlib.suppress(OSError):
      self._file.close()
    self._to_tensorboard(lambda writer: writer.close())

  def _to_tensorboard(self, action: Callable[[Any], None]) -> None:
    """Gives up TensorBoard after an error: the same numbers are in `metrics.jsonl`."""
    if not self._tensorboard:
      return
    try:
      action(self._tensorboard)
    except Exception as error:  # TensorFlow's own, from clu's thread
      self._tensorboard = None
      print(
        f"TensorBoard's files cannot be written, metrics go to metrics.jsonl only: {type(error).__name__}", flush=True
      )


def _finite(value: Any) -> Any:
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(folder: pathlib.Path) -> Any:
  """A clu writer that does not delay training; if its packages are missing, None and a printed line."""
  missing = [name for name in ("clu", "tensorflow", "tensorboard") if importlib.util.find_spec(name) is None]
  if missing:
    print(f"not installed: {', '.join(missing)}; metrics go to metrics.jsonl only, not to TensorBoard", flush=True)
    return None
  try:
    folder.mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # TensorFlow would say it later, in many lines
    with quiet_import():
      from clu import metric_writers

    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))
  except OSError as error:
    print(
      f"{folder} cannot be written ({error.strerror}); metrics go to metrics.jsonl only, not to TensorBoard", flush=True
    )
    return None
