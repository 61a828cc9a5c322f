"""A run over several processes, one of which ends before the others: killed, stopped, or by an error."""

import signal
import time

import numpy as np
import pytest

from tests.parallel.processes import Hosts
from tests.training.tiny import losses, tiny_decoder, tiny_mapping, tiny_stack, write_corpus

STEPS = 150  # so many that none of the runs is over before it is disturbed
AGAIN = "; start the same command on every host again to resume from the newest checkpoint"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
  """The config of a run that reads its data from the working directory of each process.

  Of one block, for every process here compiles it.
  """
  mapping = tiny_mapping("train.jsonl", streams=2, steps=STEPS, eval_every=STEPS, checkpoint_every=20)
  mapping["model"] = tiny_decoder(mapping, decoder=tiny_stack({"name": "hash"}, layers=1))
  mapping["model"]["decoder"]["moe"]["placement"] = {"name": "last", "n": 1}
  mapping["data"] |= {"objective": "causal_lm", "inputs_length": 0}
  mapping["data"]["source"] |= {"validation_path": "validation.jsonl"}
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n  return ConfigDict({mapping!r})\n")
  return path


@pytest.fixture
def hosts(config_file):
  with Hosts(config_file) as hosts:
    yield hosts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config_file, data):
  """The losses of an undisturbed run over two processes."""
  workdir = tmp_path_factory.mktemp("whole")
  with Hosts(config_file) as hosts:
    assert run(hosts, 2, workdir, data) == [(0, []), (0, [])]
  return losses(workdir)


def make_data(folder):
  write_corpus(folder / "train.jsonl")
  write_corpus(folder / "validation.jsonl", documents=12, seed=1)
  return folder


def start(hosts, count, workdir, data):
  return hosts.start_all(count, f"--workdir={workdir}", folders=[data] * count)


def run(hosts, count, workdir, data):
  """Exit code and unusual lines of each process."""
  return [host.finish() for host in start(hosts, count, workdir, data)]


def wait_for_step(step, workdir, hosts):
  metrics = workdir / "metrics.jsonl"
  while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= step):
    assert hosts[0].process.poll() is None, hosts[0].finish()
    time.sleep(0.01)


@pytest.mark.slow
def test_the_others_end_when_one_is_killed_and_the_same_command_resumes(hosts, whole, tmp_path, data):
  first, second = start(hosts, 2, tmp_path, data)
  wait_for_step(25, tmp_path, [first, second])
  second.process.kill()
  code, lines = first.finish()
  assert code == 1 and len(lines) == 1, lines
  assert lines[0].startswith("error: process 1 of 2 on ") and lines[0].endswith(f"sent no heartbeat for 10 s{AGAIN}")
  assert run(hosts, 2, tmp_path, data) == [(0, []), (0, [])]
  assert losses(tmp_path) == whole


@pytest.mark.slow
def test_a_run_killed_repeatedly_resumes_with_fewer_hosts_and_with_more(hosts, whole, tmp_path, data):
  first, second = start(hosts, 2, tmp_path, data)
  wait_for_step(25, tmp_path, [first, second])
  first.process.kill()
  code, lines = second.finish()
  assert code == 1 and lines[-1].startswith("error: ") and "coordinator" in lines[-1] and lines[-1].endswith(AGAIN)

  (alone,) = start(hosts, 1, tmp_path, data)
  wait_for_step(45, tmp_path, [alone])
  alone.process.kill()
  assert run(hosts, 2, tmp_path, data) == [(0, []), (0, [])]
  found = losses(tmp_path)
  assert list(found) == list(whole)
  np.testing.assert_allclose(list(found.values()), list(whole.values()), rtol=1e-4)


def test_an_error_on_one_host_is_reported_on_all(hosts, tmp_path, data):
  """The file of one host is damaged, which shows when the others are already in the first step."""
  damaged = tmp_path / "damaged"
  damaged.mkdir()
  path = make_data(damaged) / "train.jsonl"
  path.write_text("{" + path.read_text()[1:].replace("{", "[", 1))
  first, second = hosts.start_all(2, f"--workdir={tmp_path / 'run'}", folders=[data, damaged])
  code, lines = second.finish()
  assert code == 1 and len(lines) == 1 and lines[0].startswith("error: train.jsonl, line 2: is not JSON"), lines
  problem = lines[0].removeprefix("error: ")
  code, lines = first.finish()
  assert code == 1 and len(lines) == 1, lines
  assert lines[0].startswith("error: process 1 of 2 on ") and lines[0].endswith(f" stopped: {problem}")


@pytest.mark.slow
def test_when_one_is_asked_to_stop_all_save_and_stop_after_the_same_step(hosts, whole, tmp_path, data):
  started = start(hosts, 2, tmp_path, data)
  wait_for_step(25, tmp_path, started)
  started[1].process.send_signal(signal.SIGTERM)
  for host in started:
    code, lines = host.finish()
    assert code == 128 + signal.SIGTERM
    assert "stopped at step" in lines[-1] and "and saved" in lines[-1], lines
  assert 25 < len(losses(tmp_path)) < STEPS
  assert run(hosts, 2, tmp_path, data) == [(0, []), (0, [])]
  assert losses(tmp_path) == whole
