import io

from moe.training.progress import Progress


def test_the_time_left_is_unknown_until_a_step_was_made(monkeypatch):
  clock = iter([100.0, 110.0])
  monkeypatch.setattr("moe.training.progress.time.monotonic", lambda: next(clock))
  progress = Progress(100, 200, stream=io.StringIO())  # resumed after step 100
  # A validation that an earlier attempt left out is shown before the first step.
  assert progress.left(100) == progress.left(101) == "unknown time"
  assert progress.left(121) == "0:00:40"  # 79 steps at 20 in 10 s
