"""The same config gives the same numbers on any number of devices and hosts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.compiler import quick_flags
from tests.parallel.processes import free_port
from tests.training.hosts import main as run_host
from tests.training.tiny import losses


def train_on(corpus, workdir, steps=6, hosts=1, devices=1, source="", **mesh):
  """The losses of a run over processes on this machine that act as hosts; its routing groups are whole batches."""
  port = free_port()
  settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick_flags(devices)}
  environment = os.environ | settings
  command = [sys.executable, "-m", "tests.training.hosts", str(corpus), str(workdir), str(steps), json.dumps(mesh)]
  started = [
    subprocess.Popen([*command, str(host), str(hosts), str(port), str(source)], env=environment)
    for host in range(hosts)
  ]
  try:
    assert [process.wait(timeout=300) for process in started] == [0] * hosts
  finally:
    for process in started:
      process.kill()
  return losses(workdir)


def assert_same(found, expected):
  assert list(found) == list(expected)
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """The workdir of `one`."""
  return tmp_path_factory.mktemp("one")


@pytest.fixture(scope="module")
def one(corpus, source):
  """In this process: it has the one device, and all that another one would import."""
  run_host(str(corpus), str(source), "6", "{}", "0", "1", "", "")
  return losses(source)


def test_two_hosts_of_four_devices_train_as_one_device(corpus, tmp_path, one):
  """Each expert's tokens come from both hosts, and both hosts read the same stream of data."""
  assert_same(train_on(corpus, tmp_path, hosts=2, devices=4, expert=8, fsdp=True), one)


@pytest.mark.slow
def test_two_hosts_begin_from_another_run_as_one_device_does(corpus, tmp_path, one, source):
  alone = train_on(corpus, tmp_path / "alone", steps=3, source=source)
  assert alone["train", 1] < one["train", 1] - 0.5
  found = train_on(corpus, tmp_path / "two", 3, hosts=2, devices=4, source=source, expert=8, fsdp=True)
  assert_same(found, alone)


@pytest.mark.slow
def test_hosts_resume_each_others_checkpoints_on_other_meshes(corpus, tmp_path, one):
  train_on(corpus, tmp_path, steps=4, hosts=2, devices=4, expert=8)
  train_on(corpus, tmp_path, steps=5, hosts=1, devices=2, expert=2)
  found = train_on(corpus, tmp_path, steps=6, hosts=2, devices=2, data=2, model=2, fsdp=True)
  del found["validation", 4], found["validation", 5]
  assert_same(found, one)
