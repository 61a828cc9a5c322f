"""The small language model of `configs`, on one file of plain text."""

import math
import pathlib

import pytest

from moe.config_file import read_config
from moe.training.experiment import load_config
from moe.training.metrics_file import read_metrics
from moe.training.trainer import train

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "language_model.py"
TINY = {
  "model.d_model": 16,
  "model.d_ff": 32,
  "model.num_heads": 2,
  "model.d_head": 8,
  "model.decoder.layers": 2,
  "data.targets_length": 32,
  "data.batch_size": 4,
  "train.steps": 6,
  "train.log_every": 1,
  "optimizer.schedule.warmup_steps": 1,
}


@pytest.mark.parametrize("router", ["glam", "prefix_rank"])
def test_it_learns_one_file_whose_end_is_held_out(tmp_path, router):
  (tmp_path / "input.txt").write_text("to be or not to be, that is the question\n" * 100)
  fields = TINY | {
    "data.source.name": "text",
    "data.source.path": tmp_path / "input.txt",
    "model.decoder.moe.router.name": router,
  }
  config = load_config(
    read_config([f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in fields.items())])
  )
  summary = train(config, tmp_path / "run")
  records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if record["kind"] == "train"]
  assert len(records) == 6 and records[-1]["loss"] < records[0]["loss"]
  assert records[0]["loss"] == pytest.approx(math.log(259), abs=1.0)
  # 5 of the 100 lines, 41 bytes each, and the document's end.
  assert summary.validation["tokens"] == 5 * 41 + 1 and not summary.future_leakage
