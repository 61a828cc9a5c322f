"""The folder of a study: its runs, the result of each, and which of them a worker may start."""

import contextlib
import dataclasses
import glob
import json
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from moe.config import UserError, differences, require
from moe.files import local_path, write_whole
from moe.parallel.lock import LockedError, lock
from moe.studies.study import Job, Result

# What runs read, by the flag that names it, "text" or "data_dir": the names of its parts, and how large each is.
Read = Mapping[str, Mapping[str, int]]

_ABOUT = "study.json"
_SHOWN = 5  # of the fields in which two versions of a study differ, and of the parts of what runs read
_PAUSE = 1.0  # seconds between attempts to be alone


class StudyError(UserError):
  """The folder holds another version of the study, or the study cannot continue."""


def studies_folder(path: str | pathlib.Path) -> pathlib.Path:
  """The folder of any number of studies, each with a folder below it; makes nothing.

  Raises:
    ConfigError: it holds something else, and no study.
  """
  root = local_path("--workdir", path)
  content = _content(root)
  usable = any((root / name / _ABOUT).exists() for name in content) if content else root.is_dir() or not root.exists()
  require(usable, "--workdir", str(root), f"expected a folder of studies, or a new one{_holding(content)}")
  return root


def text_files(text: str) -> dict[str, int]:
  """The bytes of each file of a text, by name and in order: of globs with commas between them, or a token directory."""
  found = [path for part in text.split(",") for path in sorted(glob.glob(part, recursive=True))] if text else []
  files = [file for path in map(pathlib.Path, found) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
  return {file.name: file.stat().st_size for file in files if file.is_file()}


def _content(folder: pathlib.Path) -> list[str]:
  """The names of what is in a folder; none if it is new."""
  return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _holding(content: Sequence[str]) -> str:
  """The end of an error's sentence, which says what a folder holds; empty if that is nothing."""
  return f"; it holds {', '.join(content[:3])}{', ...' * (len(content) > 3)}" if content else ""


def _listed(parts: Iterable[str]) -> str:
  """The first few of them, and how many more there are."""
  found = list(parts)
  more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
  return f"{', '.join(found[:_SHOWN])}{more}"


class Folder:
  """`runs/NAME` is the workdir of a job, `results/NAME.json` its result, `failed/NAME.txt` why its last attempt failed.

  `study.json` says which study it is and what its runs read, and `sent/NAME.json` where a job was sent that is neither
  finished nor failed. A result never changes, so its file is read once; `aside/NAME.json` is one that was taken back.

  Attributes:
    root: of the study.
  """

  def __init__(self, path: str | pathlib.Path):
    self.root = local_path("--workdir", path)
    self._about = self.root / _ABOUT
    self._read: dict[str, Result] = {}
    self._known: set[str] = set()  # names of results from elsewhere that are not written yet
    self._aside: set[str] = set()  # and of results that were taken back, whose files are not moved yet

  def check(self, study: str, budget: str, read: Read | None = None, *, may_be_new: bool = True) -> None:
    """Checks that the folder is that of a study with a budget, and of runs that read this; writes nothing.

    Args:
      study: its name.
      budget: its name.
      read: what they read, as far as it is known.
      may_be_new: whether the folder may be empty, or absent.

    Raises:
      ConfigError: it is something else; or new, which must be allowed.
    """
    wanted = f"expected the folder of {study} with --budget={budget}{', or a new one' if may_be_new else ''}"
    require(self.root.is_dir() or not self.root.exists(), "--workdir", str(self.root), wanted)
    content = _content(self.root)
    if self._about.name not in content:
      require(may_be_new and not content, "--workdir", str(self.root), f"{wanted}{_holding(content)}")
      return
    try:
      about = json.loads(self._about.read_text())
      found = about["study"], about["budget"]
    except (OSError, ValueError, KeyError, TypeError):
      raise StudyError(f"{self._about} cannot be read: expected the names of a study and its budget") from None
    holds = f"it holds {found[0]} with --budget={found[1]}"
    require(found == (study, budget), "--workdir", str(self.root), f"{wanted}; {holds}")
    for flag, sizes in (read or {}).items():
      known = about.get(flag) or {}
      of = _listed(f"{name} with {size:,}{' bytes' * (flag == 'text')}" for name, size in known.items())
      same = not sizes or not known or dict(sizes) == known
      require(same, f"--{flag}", _listed(sizes), f"expected {of}: the runs in {self.root} have read that")

  def claim(self, study: str, budget: str, read: Read | None = None) -> None:
    """Makes the folder that of a study with a budget, and of runs that read this, as in `check`.

    Results that were added are written now, and those that were taken back are moved.

    Raises:
      StudyError: it cannot be written to.
    """
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      known = json.loads(self._about.read_text()) if self._about.exists() else {}
      new = {flag: sizes for flag, sizes in (read or {}).items() if sizes}
      if (about := {"study": study, "budget": budget} | new | known) != known:
        write_whole(self._about, json.dumps(about) + "\n")
      for name in sorted(self._known):
        self.write_result(self._read[name])
      self._known.clear()
      for name in sorted(self._aside):
        self._old(name).parent.mkdir(parents=True, exist_ok=True)
        self._result(name).replace(self._old(name))
      self._aside.clear()
    except OSError as error:
      raise StudyError(f"cannot write to --workdir {self.root}: {error.strerror}") from None

  @property
  def read(self) -> dict[str, dict[str, int]]:
    """What its runs have read, as far as it is known."""
    about = json.loads(self._about.read_text()) if self._about.exists() else {}
    return {flag: about[flag] for flag in ("text", "data_dir") if flag in about}

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Waits until no other process is within such a block."""
    path = self.root / "locks" / "prepare.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      while True:
        try:
          stack.enter_context(lock(path))
          break
        except LockedError:
          time.sleep(_PAUSE)
      yield

  def workdir(self, name: str) -> pathlib.Path:
    """The workdir of a job."""
    return self.root / "runs" / name

  def log(self, name: str) -> TextIO:
    """The file of what a job prints, over all its attempts."""
    path = self.root / "logs" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")

  def missing(self, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not finished; in order."""
    return [job for job in jobs if not self.is_finished(job.name)]

  def pending(self, jobs: Sequence[Job]) -> list[Job]:
    """The missing jobs whose last attempt has not failed; in order."""
    return [job for job in self.missing(jobs) if not self.failed(job)]

  def ready(self, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that can be started, or are being run; in order. Others start from these, or from one that failed."""
    return [job for job in self.pending(jobs) if not job.source or self.is_finished(job.source)]

  def is_finished(self, name: str) -> bool:
    """Whether the job of this name has a result; cheap enough to ask every second."""
    return name in self._known or (name not in self._aside and self._result(name).exists())

  def result(self, job: Job) -> Result | None:
    """The result of a job; None if it has not finished.

    Raises:
      StudyError: it was made with another config (the message lists what differs), or cannot be read.
    """
    path = self._result(job.name)
    if job.name not in self._read:
      if not path.exists() or job.name in self._aside:
        return None
      try:
        self._read[job.name] = Result(**json.loads(path.read_text()))
      except (OSError, ValueError, TypeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None
    result = self._read[job.name]
    if changed := differences(result.config, job.compared):
      fields = [f"{field} was {old!r}, is {new!r}" for field, (old, new) in changed.items()]
      listed = "; ".join(fields[:_SHOWN]) + f"; and {len(fields) - _SHOWN} more" * (len(fields) > _SHOWN)
      advice = f"choose another --workdir, or return to commit {result.commit}"
      raise StudyError(f"{path} is the result of another version of the study: {listed}; {advice}")
    return result

  def results(self, jobs: Sequence[Job]) -> list[Result]:
    """Those of the finished jobs."""
    return [result for job in jobs if (result := self.result(job)) is not None]

  def add(self, result: Result) -> None:
    """Counts a job without a result as finished, with one from elsewhere; `claim` writes it."""
    self._read[result.name] = result
    self._known.add(result.name)

  def take_back(self, name: str) -> None:
    """Counts a finished job as one to run: `claim` moves its result aside."""
    self._read.pop(name, None)
    if name in self._known:
      self._known.remove(name)
    else:
      self._aside.add(name)

  def has_run(self, name: str) -> bool:
    """Whether the workdir of a job holds its run, which a result from elsewhere does not."""
    return (self.workdir(name) / "config.json").exists()

  def failed(self, job: Job) -> str:
    """Why the last attempt failed; empty if it has not, or is finished."""
    path = self._failed(job.name)
    return path.read_text().strip() if path.exists() else ""

  def write_result(self, result: Result) -> None:
    """Marks a job as finished."""
    path = self._result(result.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    self._failed(result.name).unlink(missing_ok=True)
    self._sent(result.name).unlink(missing_ok=True)

  def write_failed(self, job: Job, why: str) -> None:
    """Remembers why an attempt failed."""
    path = self._failed(job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, why + "\n")
    self._sent(job.name).unlink(missing_ok=True)

  def sent(self, job: Job) -> dict[str, Any]:
    """Where a job was sent, which has neither finished nor failed since; {} for nowhere."""
    path = self._sent(job.name)
    return json.loads(path.read_text()) if path.exists() else {}

  def write_sent(self, job: Job, where: Mapping[str, Any]) -> None:
    """Remembers where a job was sent."""
    path = self._sent(job.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(where) + "\n")

  def forget_failures(self, jobs: Sequence[Job]) -> None:
    """Before a new attempt at all of them."""
    for job in jobs:
      self._failed(job.name).unlink(missing_ok=True)

  @contextlib.contextmanager
  def taken(self, job: Job) -> Iterator[bool]:
    """Takes a job within the block, so that no other worker has it; False if another has it."""
    path = self.root / "locks" / (job.name.replace("/", "_") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(lock(path))
      except LockedError:
        yield False
        return
      yield True

  def _result(self, name: str) -> pathlib.Path:
    return self.root / "results" / f"{name}.json"

  def _old(self, name: str) -> pathlib.Path:
    return self.root / "aside" / f"{name}.json"

  def _sent(self, name: str) -> pathlib.Path:
    return self.root / "sent" / f"{name}.json"

  def _failed(self, name: str) -> pathlib.Path:
    return self.root / "failed" / f"{name}.txt"
