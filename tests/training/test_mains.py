"""The commands as a user runs them: processes, exit codes, output; and runs that are killed at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.training.tiny import losses, tiny_mapping

STEPS = 80


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, corpus):
  """A config file of a run long enough to be killed in the middle."""
  mapping = tiny_mapping(corpus, steps=STEPS, eval_every=40, checkpoint_every=5)
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({mapping!r})\n")
  return path


@pytest.fixture
def start():
  """Starts `python -m moe.MAIN` with arguments."""
  started = []

  def start(main, *arguments, shell=False):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = arguments[0] if shell else [sys.executable, "-m", f"moe.{main}", *map(str, arguments)]
    options = {"shell": shell, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    process = subprocess.Popen(command, **options)
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()


def finish(process):
  """Exit code, stdout, stderr."""
  out, error = process.communicate(timeout=300)
  return process.returncode, out, error


def wait_for(condition, process):
  while not condition():
    assert process.poll() is None, process.communicate()
    time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config_file):
  """The workdir and the output of an undisturbed run."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "moe.train", f"--config={config_file}", f"--workdir={workdir}"]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
  return workdir, done.stdout, done.stderr


def test_the_end_says_what_was_learnt_and_where_the_files_are(whole):
  workdir, out, _ = whole
  for word in ("bits per byte", "gzip -9", "tokens by number of experts", "encoder/layer_0", "the model continues"):
    assert word in out
  for line in (f"checkpoint: {workdir}/checkpoints/{STEPS}", f"metrics:    {workdir}/metrics.jsonl"):
    assert line in out
  assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert list(workdir.glob("*.part")) == []


def test_without_a_terminal_there_are_plain_lines_and_nothing_of_the_libraries(whole):
  first, *lines = whole[2].splitlines()
  assert " parameters on 1 device " in first
  assert all(line.startswith(("step ", "validation at step ")) for line in lines), lines


def test_a_run_killed_at_any_moment_has_the_losses_of_an_undisturbed_one(whole, start, config_file, tmp_path):
  """Once between two checkpoints, once while one is being written."""
  command = ("train", f"--config={config_file}", f"--workdir={tmp_path}")
  metrics, checkpoints = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"

  process = start(*command)
  wait_for(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 18, process)
  process.kill()
  assert finish(process)[0] == -signal.SIGKILL

  process = start(*command)
  wait_for(lambda: any(step > 40 for step in being_written(checkpoints)), process)
  process.kill()
  assert finish(process)[0] == -signal.SIGKILL
  assert being_written(checkpoints), "the kill came too late to interrupt a checkpoint"

  code, out, _ = finish(start(*command))
  assert code == 0 and "resuming from" in out and "damaged" not in out
  assert losses(tmp_path) == losses(whole[0])


def being_written(checkpoints):
  """Steps whose checkpoints are being written."""
  return [int(path.name.split(".")[0]) for path in checkpoints.glob("*.orbax-checkpoint-tmp*")]


def test_sigterm_saves_and_is_not_reported_as_success(whole, start, config_file, tmp_path):
  command = ("train", f"--config={config_file}", f"--workdir={tmp_path}")
  process = start(*command)
  wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").stat().st_size, process)
  process.terminate()
  code, _, error = finish(process)
  assert code == 143 and "and saved; run the same command to resume" in error.splitlines()[-1]
  assert finish(start(*command))[0] == 0
  assert losses(tmp_path) == losses(whole[0])


def test_bad_input_is_one_line_and_exit_code_2(start, config_file, tmp_path):
  """In a process of its own; `tests.bad_inputs` has all the others."""
  code, _, error = finish(start("train", f"--config={config_file}", f"--workdir={tmp_path}", "--config.train.kep=3"))
  assert code == 2 and len(error.splitlines()) == 1
  assert error.startswith("error: config.train.kep = '3': unknown field; TrainConfig has steps,")


def test_help_lists_the_flags_that_all_entry_points_share(start):
  _, out, _ = finish(start("train", "--help"))
  assert {"--config:", "--workdir:", "--processes:"} <= {line.split()[0] for line in out.splitlines() if line.strip()}


def test_a_full_disk_is_one_line_and_exit_code_1(start, config_file, tmp_path):
  """No file can grow beyond 40 kB, which is less than the parameters are."""
  command = f"ulimit -f 40; exec {sys.executable} -m moe.train --config={config_file} --workdir={tmp_path}"
  code, _, error = finish(start("train", command, shell=True))
  assert code == 1
  lines = [line for line in error.splitlines() if not line.startswith(("step ", "validation "))]
  assert len(lines) == 2 and " parameters on " in lines[0], error
  assert lines[1] == "error: checkpoint 5 could not be written (File too large); there is no earlier one"


def test_an_evaluation_is_printed_and_saved_and_a_second_one_does_not_replace_it(whole, start):
  for number in (1, 2):
    code, out, error = finish(start("evaluate", f"--workdir={whole[0]}", "--step=latest"))
    assert code == 0, error
    assert "bits_per_byte" in out and f"step {STEPS}, split validation" in out
    assert "decoder routed by dense, causal" in out
    kept = sorted((whole[0] / "evaluations").glob(f"step-{STEPS}-validation-*.json"))
    assert len(kept) == number
  first, second = (json.loads(path.read_text()) for path in kept)
  assert first == second and f"{first['bits_per_byte']:.6g}" in out


def test_an_evaluation_that_cannot_be_kept_is_printed_all_the_same(whole, start, tmp_path):
  """A file stands where its folder should be, which stops even a superuser."""
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir, ignore=shutil.ignore_patterns("evaluations", "tensorboard"))
  (workdir / "evaluations").write_text("in the way")
  code, out, error = finish(start("evaluate", f"--workdir={workdir}", "--batches=1"))
  assert code == 2 and "bits_per_byte" in out
  assert error.startswith(f"error: {workdir}/evaluations/step-") and len(error.splitlines()) == 1
  assert error.endswith(".json could not be written (File exists); the result stands above\n")


def test_prompts_from_a_pipe_are_continued_in_their_order(whole, start, tmp_path):
  """Two at a time; the last one is longer than the rows of 16 tokens, which is said."""
  prompts = ["the cat", "", "an old oak", "seven grey owls watched"]
  (tmp_path / "prompts.txt").write_text("\ufeff" + "\n".join(prompts) + "\n")  # as some editors begin a file
  options = f"--workdir={whole[0]} --length=4 --batch_size=2 --json"
  command = f"{sys.executable} -m moe.generate {options} --prompts=- < {tmp_path / 'prompts.txt'}"
  code, out, error = finish(start("generate", command, shell=True))
  assert code == 0, error
  records = [json.loads(line) for line in out.splitlines()]
  assert [record["prompt"] for record in records] == prompts
  assert all(set(record) == {"prompt", "text", "step"} and len(record["text"]) <= 4 for record in records)
  assert error.splitlines() == ["prompt 4: the model reads the last 16 of its 23 tokens, as in training"]
