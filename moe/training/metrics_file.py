"""Metrics on disk: `metrics.jsonl`, one JSON object per line, and TensorBoard's event files."""

import contextlib
import importlib.util
import json
import math
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from moe.files import AnyPath, Appended, make_folder, read_bytes

Record = dict[str, Any]


def flatten_layers(layers: Mapping[str, Mapping[str, Any]]) -> Record:
  """Routers' metrics by stack and name, one row per layer, as `STACK/layer_I/NAME`; vectors become lists."""
  return {
    f"{stack}/layer_{index}/{name}": np.asarray(row).tolist()
    for stack, metrics in layers.items()
    for name, rows in metrics.items()
    for index, row in enumerate(np.asarray(rows))
  }


def read_metrics(path: AnyPath) -> list[Record]:
  """The records of a run in the order of their steps, the last one written for each step and kind.

  A run that was killed and resumed writes some steps twice. A line cut short by a kill, or any other that is no record,
  is ignored. There are none without the file.
  """
  records: dict[tuple[int, str], Record] = {}
  for line in _content(path).decode(errors="replace").splitlines():
    try:
      record = json.loads(line)
      step, kind = record["step"], record["kind"]
      if isinstance(step, int) and isinstance(kind, str):
        records[step, kind] = record
    except (ValueError, TypeError, KeyError):
      continue
  return [records[key] for key in sorted(records)]


def _content(path: AnyPath) -> bytes:
  """Of a file; none where there is no file."""
  try:
    return read_bytes(path)
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    return b""


class MetricsWriter:
  """Appends records to `metrics.jsonl` and, if `tensorboard` is installed, to TensorBoard's files.

  Args:
    path: of the JSON lines.
    tensorboard: folder of the event files; None for none.
    leaks: the kinds of record whose loss may know the future; each of these says so.

  Every record also has `seconds`, the time since the writer was made: a resumed run counts from 0 again.
  """

  def __init__(self, path: AnyPath, tensorboard: AnyPath | None = None, leaks: Collection[str] = ()):
    self._leaks, self._began = leaks, time.monotonic()
    torn = _content(path)[-1:] not in (b"", b"\n")
    self._file = Appended(path)
    if torn:
      self._file.write(b"\n")
    self._tensorboard = tensorboard and _tensorboard(tensorboard)

  def write(self, step: int, kind: str, values: Record) -> None:
    """Appends one record; non-finite numbers become strings, because JSON has none."""
    mark = {"future_leakage": True} if kind in self._leaks else {}
    about = {"step": step, "kind": kind, "seconds": round(time.monotonic() - self._began, 3)}
    record = about | mark | values
    self._file.write(json.dumps({name: _finite(value) for name, value in record.items()}).encode() + b"\n")
    self._file.flush()
    prefix = "/".join([kind, *mark])
    scalars = {f"{prefix}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
    self._to_tensorboard(lambda writer: writer.write_scalars(step, scalars))

  def sync(self) -> None:
    """What was written is now where others read it, also in a bucket; raises as `write`."""
    self._file.sync()
    self._to_tensorboard(lambda writer: writer.sync())

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
    except OSError as error:
      self._tensorboard = None
      print(f"TensorBoard's files cannot be written, metrics go to metrics.jsonl only: {error.strerror}", flush=True)


def _finite(value: Any) -> Any:
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class EventFile:
  """A new file of TensorBoard's events in a folder, which is made if it is missing; TensorFlow is not needed.

  Raises:
    OSError: it cannot be written.
  """

  def __init__(self, folder: AnyPath):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    self._event = Event
    make_folder(folder)
    # TensorBoard reads the files of a folder in the order of their names.
    path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
    self._file = Appended(path)
    self._records = RecordWriter(self._file)
    self._write(file_version="brain.Event:2")

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends the numbers of a step, and leaves none in memory."""
    values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
    self._write(step=step, summary={"value": values})

  def sync(self) -> None:
    """What was written is now where others read it, also in a bucket."""
    self._file.sync()

  def close(self) -> None:
    self._records.close()

  def _write(self, **content: Any) -> None:
    self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
    self._records.flush()


def _tensorboard(folder: AnyPath) -> EventFile | None:
  """The events of a run; without the package, or if they cannot be written, None and a printed line."""
  if importlib.util.find_spec("tensorboard") is None:
    print("not installed: tensorboard; metrics go to metrics.jsonl only", flush=True)
    return None
  try:
    return EventFile(folder)
  except OSError as error:
    print(
      f"{folder} cannot be written ({error.strerror}); metrics go to metrics.jsonl only, not to TensorBoard", flush=True
    )
    return None
