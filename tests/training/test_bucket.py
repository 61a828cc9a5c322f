"""A workdir in a bucket gives what one on a disk gives: checkpoints, records, a resumed run."""

import json
import re

import pytest

from moe.config import ConfigError
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import restore
from moe.files import Appended, open_path
from moe.parallel import lock as locks
from moe.report.collect import collect_runs
from moe.training.checksums import checksums
from moe.training.figure import draw_loss
from moe.training.metrics_file import MetricsWriter, read_metrics
from moe.training.trainer import train
from moe.training.workdir import Workdir, WorkdirError
from tests.bucket import Store
from tests.training.tiny import Interrupt, interrupt_after, tiny_config

RUN = "gs://bucket/runs/one"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  monkeypatch.setattr(locks, "SETTLED", 0.0)


def short(corpus, steps):
  return tiny_config(corpus, steps=steps, eval_every=2, checkpoint_every=2, eval_batches=1)


def test_a_run_that_is_killed_in_a_bucket_resumes_there_and_is_read_there(bucket, corpus, capsys):
  config, folder = short(corpus, steps=4), bucket / "runs" / "one"
  with pytest.raises(Interrupt):
    train(config, RUN, [interrupt_after(3)])
  summary = train(config, RUN)
  assert summary.finished and str(summary.checkpoint) == f"{RUN}/checkpoints/4"
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  losses = {kind: [(r["step"], r["loss"]) for r in lines if r["kind"] == kind] for kind in ("train", "validation")}
  assert f"resuming from {RUN}/checkpoints/2" in capsys.readouterr().out
  assert [step for step, _ in losses["train"]] == [1, 2, 3, 4]
  assert [step for step, _ in losses["validation"]] == [2, 4]
  assert sorted(path.name for path in folder.iterdir()) == [
    "checkpoints",
    "config.json",
    "metrics.jsonl",
    "tensorboard",
  ]
  trained = restore(RUN)
  assert trained.step == 4 and trained.config == config
  sums, _ = checksums({"params": trained.params, "router_state": trained.router_state})
  stored = json.loads((folder / "checkpoints" / "4" / "run" / "metadata").read_text())
  assert sums.tolist() == stored["checksums"]["model"]
  with pytest.raises(WorkdirError, match=r"^gs://bucket/runs/one holds the run of another config: config.train.accum"):
    train(tiny_config(corpus, accumulation=2), RUN)
  assert evaluate(trained, config.data, "validation", 1)["loss"] == pytest.approx(losses["validation"][-1][1])
  (run,) = collect_runs([RUN], 1)
  assert run.name == "one" and [churn.step for churn in run.churn["encoder/layer_0"]] == [4]


def test_records_reach_a_bucket_with_a_checkpoint_or_after_a_while(bucket, tmp_path, monkeypatch):
  writer = MetricsWriter(open_path("--workdir", f"{RUN}/metrics.jsonl"), open_path("--workdir", f"{RUN}/tensorboard"))
  writer.write(1, "train", {"loss": 1.0})
  assert not (bucket / "runs").exists()
  writer.sync()
  assert [record["step"] for record in read_metrics(bucket / "runs" / "one" / "metrics.jsonl")] == [1]
  monkeypatch.setattr(Appended, "PERIOD", 0.0)
  writer.write(2, "train", {"loss": 1.0})
  assert [record["step"] for record in read_metrics(bucket / "runs" / "one" / "metrics.jsonl")] == [1, 2]
  monkeypatch.undo()


def test_records_of_before_stay_when_more_are_written(bucket, tmp_path):
  path = open_path("--workdir", f"{RUN}/metrics.jsonl")
  for step in (1, 2):
    writer = MetricsWriter(path)
    writer.write(step, "train", {"loss": 1.0})
    writer.close()
  assert [record["step"] for record in read_metrics(path)] == [1, 2]
  draw_loss(path, path.with_name("loss.png"), "a run")
  assert (bucket / "runs" / "one" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_records_of_a_try_without_a_checkpoint_are_set_aside(bucket):
  folder = bucket / "runs" / "one"
  (folder / "tensorboard").mkdir(parents=True)
  (folder / "metrics.jsonl").write_text("{}\n")
  (folder / "tensorboard" / "events").write_text("events")
  Workdir(RUN).set_aside()
  moved = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
  assert moved == ["earlier-1/metrics.jsonl", "earlier-1/tensorboard/events"]


def test_a_checkpoint_that_a_kill_left_unfinished_is_none(bucket):
  unfinished = bucket / "runs" / "one" / "checkpoints" / "4" / "run" / "metadata"
  unfinished.parent.mkdir(parents=True)
  unfinished.write_text(json.dumps({"about": {"config": {}}}))
  assert Workdir(RUN).stored() is None
  (unfinished.parents[1] / "commit_success.txt").write_text("complete")
  assert Workdir(RUN).stored() == {}


@pytest.mark.parametrize(
  ("url", "said"), [(RUN, "storage.objects.create"), ("gs://none/run", "no such object or bucket")]
)
def test_a_bucket_that_cannot_be_written_to_is_one_line_before_anything_starts(bucket, corpus, monkeypatch, url, said):
  monkeypatch.setattr(Store, "read_only", True)
  monkeypatch.setattr("moe.training.trainer.Setup", None)
  with pytest.raises(WorkdirError, match=rf"^cannot write to --workdir {url}: .*{re.escape(said)}"):
    train(short(corpus, steps=2), url)


@pytest.mark.parametrize("name", ["a*b", "what?", "a#b"])
def test_a_name_under_which_checkpoints_are_not_found_again_is_refused(bucket, name):
  with pytest.raises(ConfigError, match=r"^--workdir = .*: expected a path without any of"):
    Workdir(f"gs://bucket/{name}")
