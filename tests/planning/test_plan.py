"""`moe.plan` as a user runs it, with the TPU compiler if it is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install -e '.[tpu]'"
)

CONFIG = """
from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict()
  config.model.name = "decoder"
  config.model.vocab_size = 256
  config.model.d_model = 128
  config.model.d_ff = 256
  config.model.num_heads = 2
  config.model.d_head = 64
  router = {"name": "glam", "capacity_factor": 2.0}
  config.model.decoder = ConfigDict({"layers": 4, "moe": {"num_experts": 4, "router": router}})
  config.model.dtype = "bfloat16"
  config.data = ConfigDict()
  config.data.source = "standard_library"
  config.data.vocabulary = "bytes"
  config.data.objective = "causal_lm"
  config.data.inputs_length = 0
  config.data.targets_length = 128
  config.data.batch_size = 16
  config.optimizer = ConfigDict()
  config.train = ConfigDict()
  config.train.steps = 1000
  config.mesh = ConfigDict({"data": -1, "expert": 2})
  return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(CONFIG)
  return path


def environment():
  """That of this process, without settings of the tests that would change what the TPU compiler does."""
  of_tests = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
  return {name: value for name, value in os.environ.items() if name not in of_tests}


def run(*arguments):
  """Exit code, stdout, stderr."""
  command = [sys.executable, "-m", "moe.plan", *map(str, arguments)]
  done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
  return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed here")
def test_without_the_compiler_the_line_says_how_to_install_it(config_file):
  code, _, error = run("--config", config_file, "--topology", "v5e:2x4")
  assert code == 2 and error.count("\n") == 1 and "pip install -e '.[tpu]'" in error


@needs_compiler
@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (["--config.mesh.expert=3"], "expected data x expert x model to be the number of devices, 8"),
    (["--config.data.batch_size=12"], "expected rows per micro-batch to be a multiple"),
    (["--config.model.d_model=131072", "--config.model.d_ff=131072"], "does not fit on v5e:2x4"),
  ],
)
def test_what_does_not_fit_the_slice_is_one_line(config_file, changes, said):
  code, _, error = run("--config", config_file, *changes, "--topology", "v5e:2x4")
  assert code == 2 and error.count("\n") == 1 and said in error


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_every_generation_compiles(config_file, tmp_path, topology):
  out, figure = tmp_path / "plan.json", tmp_path / "plan.png"
  code, text, error = run("--config", config_file, "--topology", topology, "--out", out, "--figure", figure)
  assert code == 0, error
  (plan,) = json.loads(out.read_text())
  assert plan["fits"] and plan["chips"] == 4 and plan["mesh"] == {"data": 2, "expert": 2, "model": 1}
  # Forward and backward without recomputation, on four chips; the optimizer has hardly any products.
  step = 3 * plan["forward_flops_per_token"] * plan["tokens"] / 4
  assert plan["flops"] == pytest.approx(step, rel=0.1)
  assert 0 < plan["estimated"] < plan["seconds"] < 1
  sent = {(entry["kind"], entry["axes"]) for entry in plan["collectives"]}
  assert ("all-to-all", "expert") in sent
  assert "tokens per second" in text and figure.exists()


@needs_compiler
@pytest.mark.slow
def test_a_step_too_large_for_the_memory_is_refused_by_the_compiler(config_file):
  changes = ["--config.data.batch_size=65536", "--config.data.targets_length=1024"]
  code, _, error = run("--config", config_file, *changes, "--topology", "v5e:2x2")
  assert code == 2 and error.count("\n") == 1
  assert "a step needs" in error and 'model.remat="full"' in error and "train.accumulation=2" in error


@needs_compiler
@pytest.mark.slow
def test_the_gradient_of_a_tied_embedding_is_summed_once(config_file, tmp_path):
  """With a head of its own as many bytes more are summed as the head has."""
  summed, vocabulary = {}, 4096
  for tied in (True, False):
    changes = [f"--config.model.vocab_size={vocabulary}", f"--config.model.tie_embeddings={tied}"]
    out = tmp_path / f"{tied}.json"
    code, _, error = run(
      "--config", config_file, *changes, "--config.mesh.fsdp=True", "--topology", "v5e:2x2", "--out", out
    )
    assert code == 0, error
    (plan,) = json.loads(out.read_text())
    summed[tied] = sum(entry["bytes"] for entry in plan["collectives"] if entry["kind"] == "all-reduce")
  assert summed[False] - summed[True] == pytest.approx(vocabulary * 128 * 4, rel=0.02)
