"""The rows of a check of a machine: printed, and written to the results file, as they come."""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moe.config import first_line
from moe.files import write_whole
from moe.markdown import markdown_table
from moe.parallel.processors import processors

_HEADER = ("part", "check", "result", "error", "tolerance", "seconds", "about")
_MOST_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a check has found.

  Attributes:
    error: the largest error, relative to the largest number of its array; None where nothing is compared.
    tolerance: of the error.
    worst: the array that has it.
    values: other numbers, for the results file.
    about: a few words about them, for the table.
  """

  error: float | None = None
  tolerance: float | None = None
  worst: str = ""
  values: dict[str, Any] = dataclasses.field(default_factory=dict)
  about: str = ""

  @property
  def ok(self) -> bool:
    return self.error is None or self.error <= self.tolerance  # a NaN is not


class Journal:
  """The rows of one check of a machine.

  Args:
    about: the machine and the settings.
    path: of the results file, whole after every row, since a machine may be taken away; None for none.
  """

  def __init__(self, about: Mapping[str, Any], path: pathlib.Path | None = None):
    self._about, self._path = dict(about), path
    self.rows: list[dict[str, Any]] = []
    print("\n".join(markdown_table(_HEADER, [])), flush=True)
    self._write(complete=False)

  @property
  def failed(self) -> list[dict[str, Any]]:
    return [row for row in self.rows if not row["ok"]]

  def add(self, part: str, check: str, body: Callable[[], Finding]) -> Finding | None:
    """Runs a check; one that raises has failed, and does not stop the others."""
    return self._record(part, check, *_timed(body))

  def add_all(self, part: str, checks: Mapping[str, Callable[[], Finding]]) -> None:
    """Runs checks at the same time, since most of what they take is the compiler's; rows come in the given order."""
    with _pool() as pool:
      running = {check: pool.submit(_timed, body) for check, body in checks.items()}
      for check, result in running.items():
        self._record(part, check, *result.result())

  def finish(self) -> None:
    """Marks the results file as complete."""
    self._write(complete=True)

  def _record(self, part: str, check: str, found: Finding | Exception, seconds: float) -> Finding | None:
    row: dict[str, Any] = {"part": part, "check": check, "seconds": round(seconds, 2)}
    if isinstance(found, Exception):
      row |= {"ok": False, "exception": f"{type(found).__name__}: {first_line(found)}"}
    else:
      row |= {"ok": found.ok} | found.values
      if found.error is not None:
        row |= {"error": _number(found.error), "tolerance": found.tolerance, "worst": found.worst}
    self.rows.append(row)
    about = row.get("exception") or (found.about if isinstance(found, Finding) else "")
    about = about or ("" if row["ok"] else row["worst"])
    numbers = [f"{row[name]:.1e}" if isinstance(row.get(name), float) else "" for name in ("error", "tolerance")]
    cells = [part, check, "ok" if row["ok"] else "FAILED", *numbers, f"{seconds:.1f}", about.replace("|", "/")]
    print(markdown_table(_HEADER, [cells])[-1], flush=True)
    self._write(complete=False)
    return found if isinstance(found, Finding) else None

  def _write(self, *, complete: bool) -> None:
    if self._path is not None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      results = {"settings": self._about, "complete": complete, "rows": self.rows}
      write_whole(self._path, json.dumps(results, indent=1) + "\n")


def _timed(body: Callable[[], Finding]) -> tuple[Finding | Exception, float]:
  began = time.perf_counter()
  try:
    found: Finding | Exception = body()
  except Exception as error:  # whatever a compiler or a driver raises
    found = error
  return found, time.perf_counter() - began


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
  """Threads, which forget what they have not begun if the block is left by an error or Ctrl-C."""
  pool = ThreadPoolExecutor(min(_MOST_WORKERS, len(processors())))
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _number(value: float) -> float | str:
  """The number, or its name where JSON has none."""
  return value if math.isfinite(value) else str(value)
