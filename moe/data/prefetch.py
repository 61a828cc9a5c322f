"""A thread that prepares batches ahead, so that the device never waits for one."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
  """Iterates over `items` in a thread, at most `depth` ahead. An exception in the thread is raised by `next`."""

  def __init__(self, items: Iterator[T], depth: int):
    self._items = items
    self._queue: queue.Queue = queue.Queue(depth)
    self._stop = threading.Event()
    self._error: BaseException | None = None
    self._thread = threading.Thread(target=self._work, name="moe-data", daemon=True)
    self._thread.start()

  def __iter__(self) -> "Prefetcher[T]":
    return self

  def __next__(self) -> T:
    if self._error is None:
      item, error = self._queue.get()
      if error is None:
        return item
      # Stored, because nothing follows in the queue: another call must not block.
      self._error = error
    raise self._error

  def close(self) -> None:
    """Ends the thread and drops what it prepared."""
    self._stop.set()
    while self._thread.is_alive():
      try:
        self._queue.get_nowait()
      except queue.Empty:
        self._thread.join(0.01)
    self._error = self._error or StopIteration()

  def _work(self) -> None:
    try:
      for item in self._items:
        self._queue.put((item, None))
        if self._stop.is_set():
          return
      self._queue.put((None, StopIteration()))
    except BaseException as error:  # the consumer handles it
      self._queue.put((None, error))
