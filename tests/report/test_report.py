"""`python -m moe.report` as a user calls it, on runs of a few steps."""

import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import jax.numpy as jnp
import pytest
from flax import nnx

from moe.training.checkpoint import Checkpoints
from moe.training.experiment import load_config
from moe.training.feed import describe, open_vocabulary
from moe.training.state import TrainState, split
from moe.training.trainer import train
from moe.training.workdir import Workdir
from tests.training.tiny import tiny_decoder, tiny_mapping

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
  """An encoder-decoder with three checkpoints; and a decoder that leaks the future, untrained and without records."""
  folder, mapping = tmp_path_factory.mktemp("runs"), tiny_mapping(corpus, steps=6, checkpoint_every=2, keep=3)
  train(load_config(mapping), folder / "causal")
  model = tiny_decoder(mapping, {"name": "expert_choice"}, allow_future_leakage=True)
  save_untrained(load_config(mapping | {"model": model}), Workdir(folder / "leaking"))
  return folder


def save_untrained(config, workdir):
  workdir.claim(config)
  _, params, router_state = split(config.model.make(nnx.Rngs(0)))
  checkpoints = Checkpoints(workdir.checkpoints)
  about = {"vocabulary": describe(open_vocabulary(config))}
  checkpoints.save(TrainState(jnp.int32(1), params, router_state, {"count": jnp.int32(0)}), {}, about)
  checkpoints.close()


def report(folder, *arguments):
  """Exit code, stdout and stderr of the main, called in `folder`."""
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  environment["PYTHONPATH"] = str(ROOT)
  command = [sys.executable, "-m", "moe.report", *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
  return done.returncode, done.stdout, done.stderr


def test_two_runs_side_by_side_in_one_file_and_a_second_report_leaves_the_first(runs, tmp_path, monkeypatch):
  (runs / "notes").mkdir()  # matches the glob, and is no run
  monkeypatch.setenv("HOME", str(runs))
  code, out, error = report(tmp_path, "--workdir=~/*", "--batches=1")
  assert code == 0, error
  causal, leaking, written = out.splitlines()
  assert re.match(r"causal: step 6: .* tokens per second, .*, wall time 0:0", causal) and leaking.startswith(
    "leaking: none"
  )
  assert written.startswith("written to report.html")
  page = (tmp_path / "report.html").read_text()
  root = ElementTree.fromstring(page.split("\n", 1)[1])
  titles = [text.text for text in root.iter("text") if text.get("class") == "title"]
  assert {"Loss per token", "Dropped · encoder/layer_0", "Churn · encoder/layer_0"} <= set(titles)
  # 2 and a little: budgets of real tokens are rounded.
  assert any(title.startswith("Experts · decoder/layer_0 · leaking · mean 2.02") for title in titles)
  churn = [e.get("data-tip") for e in root.iter("circle") if "up to step" in e.get("data-tip", "")]
  assert [tip.split(":")[0] for tip in churn if tip.startswith("causal")] == [
    "causal, up to step 4",
    "causal, up to step 6",
  ]
  assert "leaking: only one checkpoint; config.train.keep" in page
  (causality,) = [part for part in root.iter("section") if part.find("h2").text == "Causality"]
  assert "sees later tokens" in "".join(causality.itertext())
  assert "FUTURE LEAKAGE" in page and page.count("<script>") == 1

  code, out, _ = report(tmp_path, f"--workdir={runs / 'causal'}", "--batches=1")
  assert code == 0 and out.splitlines()[-1].startswith("written to report-2.html")
  assert (tmp_path / "report.html").read_text() == page


def test_a_run_without_a_checkpoint_is_one_line(corpus, tmp_path):
  Workdir(tmp_path / "young").claim(load_config(tiny_mapping(corpus)))
  code, _, error = report(tmp_path, "--workdir=young")
  assert code == 1 and error.endswith("/young has no checkpoint yet\n") and error.count("\n") == 1
