"""Launching through XPK on GKE."""

import shlex

import pytest

from tests.scripts.conftest import executable

CLUSTER = ["c", "--zone=z", "--project=p"]
WHERE = "--cluster=c --zone=z --project=p"


def test_a_dry_run_of_create_makes_cluster_and_disk(cloud):
  assert cloud.dry("xpk", "create", *CLUSTER, "--tpu-type=v5litepod-16", "--spot") == [
    f"xpk cluster create --tpu-type=v5litepod-16 --enable-gcpfilestore-csi-driver --spot {WHERE}",
    "xpk storage create c-moe --type=gcpfilestore --vol=moe --size=1024 --tier=BASIC_HDD "
    f"--access-mode=ReadWriteMany --mount-point=/mnt/moe --readonly=false --auto-mount=true {WHERE}",
  ]


@pytest.fixture
def start():
  options = ["--tpu-type=v5litepod-16", "--name=run1", "--config=configs/new.py", "--workdir=/mnt/moe/it's a run"]
  return ["start", *CLUSTER, *options, "--config.data.path=a \"b\"  'c'"]


def test_a_dry_run_of_start_packs_the_checkout_and_creates_the_workload(cloud, start):
  *packed, clear, folder, unpack, workload = cloud.dry("xpk", *start)
  assert packed[-1].startswith("env GIT_INDEX_FILE=build/launch/index bash -c 'git add --all && git archive ")
  assert [clear, folder] == ["rm -rf build/launch/source", "mkdir -p build/launch/source"]
  assert unpack == "tar -xzf build/launch/source.tar.gz -C build/launch/source"
  *options, command, cluster, zone, project = shlex.split(workload)
  assert options == [
    "xpk",
    "workload",
    "create",
    "--workload=run1",
    "--tpu-type=v5litepod-16",
    "--num-slices=1",
    "--base-docker-image=python:3.11",
    "--script-dir=build/launch/source",
    "--max-restarts=50",
    "--restart-on-exit-codes=1",
    "--termination-grace-period-seconds=300",
  ]
  assert [cluster, zone, project] == WHERE.split()
  train = ["--config", "configs/new.py", "--workdir", "/mnt/moe/it's a run", "--config.data.path=a \"b\"  'c'"]
  assert shlex.split(command.removeprefix("--command=")) == [
    *("pip", "install", "--quiet", "--editable", ".[tpu,gcs]", "&&"),
    *("exec", "python", "-m", "moe.train", *train, "--distributed"),
  ]


def test_what_is_printed_is_what_is_run(cloud, start):
  for arguments in (start, ["stop", *CLUSTER, "--name=run1", "--yes"], ["delete", *CLUSTER, "--yes"]):
    assert cloud.same_as_printed("xpk", *arguments)
  source = cloud.checkout / "build/launch/source"
  assert (source / "configs/new.py").exists() and not (source / "secret").exists()


def test_in_the_container_signals_go_to_the_training_itself(cloud, start):
  """XPK runs (COMMAND) & in a shell, and passes SIGTERM on to that child."""
  executable(cloud.bin / "pip", "#!/bin/bash\n")
  executable(cloud.bin / "python", "#!/bin/bash\necho $$\n")
  (command,) = [part for part in shlex.split(cloud.dry("xpk", *start)[-1]) if part.startswith("--command=")]
  done = cloud.bash(f"({command.removeprefix('--command=')}) & echo $!; wait")
  child, training = done.stdout.split()
  assert child == training


def test_the_first_hosts_log_is_followed(cloud):
  assert cloud.dry("xpk", "log", *CLUSTER, "--name=run1") == [
    "kubectl logs --follow --tail=100 --container=jax-tpu "
    "--selector=xpk.google.com/workload=run1,batch.kubernetes.io/job-completion-index=0"
  ]


@pytest.mark.parametrize(
  ("arguments", "command"),
  [
    (["stop", "--name=run1"], f"xpk workload delete --workload=run1 --force {WHERE}"),
    (["delete"], f"xpk cluster delete --force {WHERE}"),
  ],
)
def test_verbs_that_end_something_ask_first(cloud, arguments, command):
  verb, *options = arguments
  done = cloud.launch("xpk", verb, *CLUSTER, *options)
  assert done.returncode == 1 and done.stderr.count("\n") == 1 and "give --yes" in done.stderr
  assert cloud.calls() == []
  assert cloud.launch("xpk", verb, *CLUSTER, *options, "--yes").returncode == 0
  assert cloud.calls() == [command.split()]


def test_bad_input_and_a_missing_tool_are_one_line(cloud, start):
  said = {
    "--workdir=run": "error: --workdir = 'run': expected an absolute path, on a disk shared by all hosts, or gs://BUCKET/PATH\n",
    "--config=no.py": "error: --config = 'no.py': expected an existing file\n",
  }
  for argument, error in said.items():
    assert cloud.launch("xpk", *start, argument).stderr == error
  assert cloud.launch("xpk", *start, "--config.a=b\nc").stderr.startswith("error: --config = ")
  done = cloud.launch("xpk", "delete", *CLUSTER, "--yes", PATH="/nothing")
  assert done.stderr == "error: xpk is not installed: pip install xpk; --dry-run prints the commands without it\n"
