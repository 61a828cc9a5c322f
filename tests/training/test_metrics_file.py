import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest

from moe.files import Appended
from moe.training import metrics_file
from moe.training.figure import draw_loss
from moe.training.metrics_file import MetricsWriter, flatten_layers, read_metrics
from moe.training.progress import Clock, Progress


def write(path, *records, leaks=()):
  writer = MetricsWriter(path, leaks=leaks)
  for step, kind, values in records:
    writer.write(step, kind, values)
  writer.close()


def test_records_are_read_in_order_as_they_were_written(tmp_path, monkeypatch):
  """With the seconds since the writer was made, which is at 100 here."""
  clock = iter((100.0, 101.5, 103.0, 104.0))
  monkeypatch.setattr(metrics_file.time, "monotonic", lambda: next(clock))
  path = tmp_path / "metrics.jsonl"
  write(path, (2, "train", {"loss": 0.1}), (1, "train", {"loss": 0.2}), (2, "validation", {"loss": 0.3}))
  assert read_metrics(path) == [
    {"step": 1, "kind": "train", "seconds": 3.0, "loss": 0.2},
    {"step": 2, "kind": "train", "seconds": 1.5, "loss": 0.1},
    {"step": 2, "kind": "validation", "seconds": 4.0, "loss": 0.3},
  ]


def test_a_line_torn_by_a_kill_is_ignored_and_the_resumed_run_starts_a_new_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, (1, "train", {"loss": 1.0}), (2, "train", {"loss": 2.0}))
  path.write_bytes(path.read_bytes()[:-9])
  write(path, (2, "train", {"loss": 3.0}))
  assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.0), (2, 3.0)]


def test_what_is_no_record_is_ignored(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert read_metrics(path) == []
  path.write_bytes(b'\xff\xfe\n[1]\n{}\n{"step": "x", "kind": "train"}\n{"step": 1, "kind": null}\n')
  write(path, (2, "train", {"loss": 2.0}))
  assert [record["step"] for record in read_metrics(path)] == [2]


def test_the_later_record_of_a_repeated_step_counts(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, (1, "train", {"loss": 1.0}), (2, "train", {"loss": 2.0}))
  write(path, (2, "train", {"loss": 5.0}))
  assert [r["loss"] for r in read_metrics(path)] == [1.0, 5.0]


def test_every_line_is_strict_json_even_if_a_number_is_not_finite(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, (1, "train", {"loss": float("nan"), "load": [float("inf"), 1.0]}))

  def refuse(constant):
    raise AssertionError(constant)

  record = json.loads(path.read_text(), parse_constant=refuse)
  assert record["loss"] == "nan" and record["load"] == ["inf", 1.0]


def test_records_of_a_kind_that_leaks_the_future_say_so(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write(path, (1, "train", {}), (1, "validation", {}), leaks=["train"])
  assert ["future_leakage" in record for record in read_metrics(path)] == [True, False]


def test_scalars_go_to_tensorboard_and_leaking_ones_say_so_in_their_names(tmp_path):
  pytest.importorskip("tensorboard", reason="tensorboard is not installed")
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", ["train"])
  writer.write(3, "train", {"loss": 1.5, "load": [1.0, 2.0]})
  writer.close()
  writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events", ["train"])  # as of a run that resumes
  writer.write(4, "train", {"loss": float("inf")})
  writer.close()
  events = EventAccumulator(str(tmp_path / "events"))
  events.Reload()
  assert events.Tags()["scalars"] == ["train/future_leakage/loss"]
  found = [(event.step, event.value) for event in events.Scalars("train/future_leakage/loss")]
  assert found == [(3, 1.5), (4, float("inf"))]


def test_without_tensorboard_a_line_says_so_and_the_metrics_are_kept(tmp_path, monkeypatch, capsys):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
  writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events")
  writer.write(3, "train", {"loss": 1.5})
  writer.close()
  assert "not installed: tensorboard; metrics go to metrics.jsonl only" in capsys.readouterr().out
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 1.5


def test_training_continues_if_tensorboards_files_cannot_be_written(tmp_path, monkeypatch, capsys):
  class Failing:
    def write_scalars(self, step, scalars):
      raise OSError(28, "No space left on device")

    def close(self):
      raise AssertionError("used again after it had failed")

  monkeypatch.setattr(metrics_file, "_tensorboard", lambda folder: Failing())
  writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "events")
  writer.write(1, "train", {"loss": 1.5})
  writer.write(2, "train", {"loss": 1.0})
  writer.close()
  assert capsys.readouterr().out.count("TensorBoard's files cannot be written") == 1
  assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1.5, 1.0]


def test_a_full_disk_is_one_error_and_closing_is_not_another(tmp_path):
  writer = MetricsWriter(tmp_path / "metrics.jsonl")
  writer._file.close()
  writer._file = Appended(pathlib.Path("/dev/full"))
  with pytest.raises(OSError, match="No space left"):
    writer.write(1, "train", {"loss": 1.5})
  writer.close()


def test_layers_are_never_pooled():
  layers = {"encoder": {"dropped": np.array([0.25, 0.5]), "load": np.array([[1.0, 2.0], [3.0, 4.0]])}}
  assert flatten_layers(layers) == {
    "encoder/layer_0/dropped": 0.25,
    "encoder/layer_1/dropped": 0.5,
    "encoder/layer_0/load": [1.0, 2.0],
    "encoder/layer_1/load": [3.0, 4.0],
  }


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_without_a_terminal_there_is_one_plain_line_for_every_logged_step():
  stream = io.StringIO()
  progress = Progress(0, 4, stream=stream)
  for step in range(1, 5):
    progress.step(step, 2.5, 1234.5, log=step % 2 == 0)
  lines = stream.getvalue().splitlines()
  assert [line.split(":")[0] for line in lines] == ["step 2/4", "step 4/4"]
  assert "loss 2.5000" in lines[0] and "tokens/s" in lines[0] and "left" in lines[0]
  assert "\r" not in stream.getvalue()


def test_on_a_terminal_a_bar_shows_loss_and_speed_and_counts_every_step():
  stream = Terminal()
  progress = Progress(0, 4, stream=stream)
  for step in range(1, 5):
    progress.step(step, 2.5, 1234.0, log=False)
  progress.close()
  assert "4/4" in stream.getvalue() and "loss 2.5000, 1,234 tokens/s" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_leaking_loss_is_never_shown_without_the_word(stream):
  progress = Progress(0, 1, leaks=["train", "validation"], stream=stream)
  progress.step(1, 2.5, 1.0, log=True)
  progress.validation(1, {"loss": 2.5, "bits_per_byte": 1.0})
  progress.close()
  assert stream.getvalue().count("loss") == stream.getvalue().count("loss (future leakage)") >= 2


def test_only_waits_that_leave_the_device_idle_count():
  clock = Clock()
  with clock.waiting(lambda: False):
    pass
  assert clock.input_wait == 0
  with clock.waiting(lambda: True):
    pass
  assert 0 < clock.input_wait <= 1


def test_a_figure_is_drawn_even_if_a_number_is_not_finite(tmp_path):
  path, figure = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
  curve = [(step, "train", {"bits_per_byte": 8.0 / step}) for step in range(1, 9)]
  write(path, *curve, (9, "train", {"bits_per_byte": float("nan")}), (8, "validation", {"bits_per_byte": 1.5}))
  draw_loss(path, figure, "A run", gzip_bits=2.0)
  assert figure.read_bytes().startswith(b"\x89PNG")
  assert sorted(file.name for file in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]
