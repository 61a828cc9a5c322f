"""The thread that works ahead gives all items in order, and its errors."""

import threading

import pytest

from moe.data.prefetch import Prefetcher


def test_items_come_in_order_and_end():
  items = Prefetcher(iter(range(100)), 3)
  assert list(items) == list(range(100))
  with pytest.raises(StopIteration):
    next(items)


def test_an_error_in_the_thread_is_raised_after_the_items_before_it():
  def fails():
    yield 1
    raise OSError("disk gone")

  items = Prefetcher(fails(), 3)
  assert next(items) == 1
  for _ in range(2):
    with pytest.raises(OSError, match="disk gone"):
      next(items)


def test_no_more_than_the_depth_is_made_ahead():
  made = []
  full = threading.Event()

  def counts():
    for number in range(100):
      made.append(number)
      # The third is made when two are in the queue.
      if number == 2:
        full.set()
      yield number

  items = Prefetcher(counts(), 2)
  assert full.wait(10)
  assert not threading.Event().wait(0.2)
  assert made == [0, 1, 2]
  items.close()


def test_closing_ends_the_thread_though_nobody_takes_its_items():
  items = Prefetcher(iter(range(10**9)), 2)
  next(items)
  items.close()
  assert not items._thread.is_alive()
  with pytest.raises(StopIteration):
    next(items)
