"""Compiled programs that the runs of one process share, where it asks for that: each is traced and compiled once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Program = TypeVar("Program")

_MOST = 8  # a run has up to four; what is older is made again
_LOCK = threading.Lock()
_kept: list[tuple[tuple, Any]] | None = None  # newest last; None where nothing is shared


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
  """Inside, runs use each other's programs, so code that is changed meanwhile, as in a notebook, goes unnoticed."""
  global _kept
  before, _kept = _kept, []
  try:
    yield
  finally:
    _kept = before


def program(key: tuple, make: Callable[[], Program]) -> Program:
  """What `make` makes, or what it made for an equal key, which names the program and all that it depends on."""
  if _kept is None:
    return make()
  with _LOCK:
    for index, (other, made) in enumerate(_kept):
      if other == key:
        _kept.append(_kept.pop(index))
        return made
    made = make()
    _kept.append((key, made))
    del _kept[:-_MOST]
    return made
