import os

from moe.parallel.processors import processors


def test_cores_are_those_that_this_process_may_use():
  before = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(before)})
    assert processors() == [min(before)]
  finally:
    os.sched_setaffinity(0, before)


def test_a_system_that_does_not_tell_has_as_many_without_numbers(monkeypatch):
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: 3)
  assert processors() == [None] * 3
