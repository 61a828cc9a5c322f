"""Launching on a Cloud TPU slice of two hosts, with real shells and a fake cloud."""

import subprocess
import time

import pytest

from tests.scripts.conftest import remote

SLICE = ["t", "--zone=z"]
ASKED = ["--accelerator-type=v5litepod-16", "--spot"]
GCLOUD = "gcloud compute tpus"
ON_HOST = "bash moe/source/scripts/launch/on_host.sh"
PACK = [
  "mkdir -p build/launch",
  "env GIT_INDEX_FILE=build/launch/index bash -c "
  "'git add --all && git archive --format=tar.gz --output=build/launch/source.tar.gz \"$(git write-tree)\"'",
]
LIST = f"{GCLOUD} queued-resources list '--filter=name~/t$' '--format=value(state.state)' --zone=z --quiet"
STATE = (
  f"{GCLOUD} tpu-vm ssh t --worker=all '--command=if [ -e moe/source ]; then "
  "bash moe/source/scripts/launch/on_host.sh state; else echo state=not-installed; fi' --zone=z --quiet"
)
CREATE = (
  f"{GCLOUD} queued-resources create t --node-id=t --accelerator-type=v5litepod-16 "
  "--runtime-version=v2-alpha-tpuv5-lite --zone=z --quiet --spot"
)
INSTALL = [
  *PACK,
  f"{GCLOUD} tpu-vm scp build/launch/source.tar.gz t:moe.tar.gz --worker=all --zone=z --quiet",
  f"{GCLOUD} tpu-vm ssh t --worker=all '--command=rm -rf moe/source && mkdir -p moe/source && "
  f"tar -xzf moe.tar.gz -C moe/source && {ON_HOST} install 10.0.0.2:/moe' --zone=z --quiet",
]
START = (
  f"{GCLOUD} tpu-vm ssh t --worker=all '--command=bash moe/source/scripts/launch/on_host.sh start /mnt/moe/run "
  "python -m moe.train --config configs/new.py --workdir /mnt/moe/run --distributed' --zone=z --quiet"
)
TRAIN = ["--config=configs/new.py", "--workdir=/mnt/moe/run"]
NFS = "--nfs=10.0.0.2:/moe"
DELETE = f"{GCLOUD} queued-resources delete t --force --zone=z --quiet"


def answered(line: str, answer: str) -> str:
  return f"{line}  # assumed answer: {answer}"


@pytest.mark.parametrize(
  ("arguments", "lines"),
  [
    (["create", *SLICE, *ASKED], [CREATE]),
    (["install", *SLICE, NFS], [answered(LIST, "ACTIVE"), answered(STATE, "state=idle"), *INSTALL]),
    (["start", *SLICE, *TRAIN], [answered(STATE, "state=idle"), START]),
    (
      ["log", *SLICE, "--worker=3", "--project=p"],
      [
        f"{GCLOUD} tpu-vm ssh t --worker=3 '--command=bash moe/source/scripts/launch/on_host.sh log' "
        "--zone=z --project=p --quiet"
      ],
    ),
    (
      ["stop", *SLICE],
      [f"{GCLOUD} tpu-vm ssh t --worker=all '--command={ON_HOST} stop' --zone=z --quiet"],
    ),
    (
      ["resume", *SLICE, *ASKED, NFS, *TRAIN],
      [
        answered(LIST, "SUSPENDED"),
        DELETE,
        CREATE,
        answered(LIST, "ACTIVE"),
        answered(STATE, "state=not-installed"),
        *INSTALL,
        START,
      ],
    ),
    (["delete", *SLICE], [DELETE]),
  ],
  ids=lambda value: value[0] if value[1:2] == ["t"] else "",
)
def test_a_dry_run_prints_the_commands_and_needs_no_tool(cloud, arguments, lines):
  assert cloud.dry("tpu", *arguments) == lines


@pytest.mark.parametrize(
  ("kind", "runtime"),
  [
    ("v4-16", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-16", "v2-alpha-tpuv5"),
    ("v6e-16", "v2-alpha-tpuv6e"),
  ],
)
def test_each_generation_has_its_software(cloud, kind, runtime):
  (line,) = cloud.dry("tpu", "create", *SLICE, f"--accelerator-type={kind}")
  assert f"--accelerator-type={kind} --runtime-version={runtime} " in line and "--spot" not in line


def test_what_is_printed_is_what_is_run(cloud):
  assert cloud.same_as_printed("tpu", "create", *SLICE, *ASKED)
  assert cloud.same_as_printed("tpu", "install", *SLICE)
  overrides = ['--config.data.path=a "b"  c', "--config.x=$HOME; `ls` \\ 'é'"]
  train = ["--config=configs/new.py", f"--workdir={cloud.workdir}", *overrides]
  assert cloud.same_as_printed("tpu", "start", *SLICE, *train)
  assert cloud.same_as_printed("tpu", "delete", *SLICE, "--yes")


def test_no_quote_or_space_is_lost_on_the_way_to_the_hosts(cloud):
  overrides = ['--config.data.path=a "b"  c', "--config.x=$HOME; `ls` \\ 'é'", "--config.empty="]
  arguments = ["start", *SLICE, "--config=configs/new.py:x", f"--workdir={cloud.workdir}", *overrides]
  wanted = ["-m", "moe.train", "--config", "configs/new.py:x", "--workdir", cloud.workdir, *overrides, "--distributed"]
  line = cloud.dry("tpu", *arguments)[-1]
  assert remote(line) == ["bash", "moe/source/scripts/launch/on_host.sh", "start", cloud.workdir, "python", *wanted]

  assert cloud.launch("tpu", "install", *SLICE).returncode == 0
  assert cloud.launch("tpu", *arguments).returncode == 0
  wait_for_end(cloud)
  assert cloud.trained() == {"0-1": wanted, "1-1": wanted}


@pytest.fixture
def installed(cloud):
  assert cloud.launch("tpu", "install", *SLICE, NFS).returncode == 0
  return cloud


def on_disk(cloud):
  return ["--config=configs/new.py", f"--workdir={cloud.workdir}"]


def wait_for_end(cloud):
  for host in ("0", "1"):
    subprocess.run(["flock", "--timeout", "30", cloud.folder / "hosts" / host / "moe/run.lock", "true"], check=True)


def test_every_host_gets_the_checkout_as_it_is_and_the_disk(installed):
  for host in ("0", "1"):
    source = installed.folder / "hosts" / host / "moe" / "source"
    assert (source / "configs/new.py").read_text() == "a config that nobody has committed yet"
    assert (source / "scripts/launch/on_host.sh").stat().st_mode & 0o100
    assert not (source / "secret").exists() and not (source / "build").exists()
  mounts = [call for call in installed.calls() if call[:2] == ["sudo", "mount"]]
  assert mounts == [["sudo", "mount", "-t", "nfs", "10.0.0.2:/moe", "/mnt/moe"]] * 2


def test_a_file_removed_from_the_checkout_is_removed_from_the_hosts(installed):
  (installed.checkout / "configs/new.py").rename(installed.checkout / "configs/newer.py")
  assert installed.launch("tpu", "install", *SLICE).returncode == 0
  source = installed.folder / "hosts/1/moe/source/configs"
  assert [path.name for path in source.iterdir()] == ["newer.py"]


def test_a_run_in_progress_is_neither_started_twice_nor_overwritten(installed):
  installed.training("trap 'kill $!; echo saved; exit 143' TERM; sleep 60 & echo ready; wait")
  arguments = ["start", *SLICE, *on_disk(installed)]
  assert installed.launch("tpu", *arguments).returncode == 0
  for again in (arguments, ["install", *SLICE]):
    done = installed.launch("tpu", *again)
    assert done.returncode == 1 and "error: t has a run in progress; `log` follows it" in done.stderr
  assert len(installed.trained()) == 2

  logs = [installed.folder / "hosts" / host / "moe/run.log" for host in ("0", "1")]
  while not all("ready" in log.read_text() for log in logs):
    time.sleep(0.01)
  done = installed.launch("tpu", "stop", *SLICE)
  assert done.returncode == 0, done.stderr
  assert (installed.folder / "hosts/1/moe/run.end").read_text() == "143\n"
  assert logs[1].read_text() == "training 1\nready\nsaved\n"
  assert installed.launch("tpu", *arguments).returncode == 0
  assert len(installed.trained()) == 4


def test_a_host_itself_refuses_a_second_run(installed):
  """Two starts at once may both find nothing running; the lock decides."""
  installed.training("sleep 60")
  command = f"bash moe/source/scripts/launch/on_host.sh start '{installed.folder}/disk/run' python"
  host = installed.folder / "hosts/0"
  starts = [subprocess.run(["bash", "-c", command], cwd=host, env=environment(installed, host)) for _ in range(2)]
  assert [start.returncode for start in starts] == [0, 1]


def environment(cloud, host):
  return cloud.environment | {"HOME": str(host)}


def test_the_log_is_followed(installed):
  installed.training("sleep 0.5; echo step 7; sleep 60")
  installed.launch("tpu", "start", *SLICE, *on_disk(installed))
  command = installed.command("tpu", "log", *SLICE)
  options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "start_new_session": True}
  with subprocess.Popen(command, cwd=installed.checkout, env=installed.environment, **options) as log:
    assert [log.stdout.readline(), log.stdout.readline()] == ["training 1\n", "step 7\n"]
    subprocess.run(["kill", "-TERM", "--", f"-{log.pid}"], check=True)


def test_a_workdir_on_the_hosts_own_disk_is_refused(installed):
  done = installed.launch("tpu", "start", *SLICE, "--config=configs/new.py", "--workdir=/home/me/run")
  assert (
    done.returncode == 1 and "/home/me/run is on the host's own disk, which is deleted with the slice" in done.stderr
  )
  assert installed.trained() == {}


def test_a_workdir_in_a_bucket_is_on_no_disk(installed):
  installed.training("true")
  done = installed.launch("tpu", "start", *SLICE, "--config=configs/new.py", "--workdir=gs://bucket/run")
  assert done.returncode == 0, done.stderr
  assert installed.trained()


def resume(cloud, *arguments):
  options = [*ASKED, *on_disk(cloud), "--poll=0.01", *arguments]
  return cloud.launch("tpu", "resume", *SLICE, *options)


def verbs(cloud):
  """The verbs that changed something, in order; without queries and copies."""
  named = [(call[4], call[-4]) for call in cloud.calls() if call[0] == "gcloud" and call[4] not in ("list", "scp")]
  return [verb for verb, _ in named if verb != "ssh" and verb != "describe"]


def test_resume_starts_from_nothing_and_survives_preemptions(cloud):
  preempted = ["SUSPENDING", "SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
  cloud.states("", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", *preempted, *preempted)
  cloud.training("[ $number = 3 ] && exit 0; sleep 60")
  done = resume(cloud, "--restarts=0")
  assert done.returncode == 0, done.stderr
  assert "the training has finished" in done.stdout.splitlines()[-1]
  assert verbs(cloud) == ["create", "delete", "create", "delete", "create"]
  trained = cloud.trained()
  assert sorted(trained) == ["0-1", "0-2", "0-3", "1-1", "1-2", "1-3"]
  assert len({tuple(arguments) for arguments in trained.values()}) == 1


def test_resume_notices_a_preempted_slice_whose_request_is_active(cloud):
  (cloud.folder / "node").write_text("PREEMPTED")
  cloud.fail("ssh")
  done = resume(cloud, "--restarts=0")
  assert done.returncode == 0, done.stderr
  assert verbs(cloud) == ["delete", "create"]


def test_resume_waits_for_a_cloud_that_does_not_answer(cloud):
  cloud.fail("list", 3)
  done = resume(cloud, "--restarts=0")
  assert done.returncode == 0 and done.stdout.count("unreachable") == 1
  assert verbs(cloud) == []


def test_resume_restarts_a_failed_training_a_limited_number_of_times(cloud):
  cloud.training("exit 1")
  done = resume(cloud, "--restarts=2")
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == ("error: the training ended with an error; failure 3, with --restarts 2")
  assert len(cloud.trained()) == 6


def test_resume_counts_failed_requests_and_refusals_of_the_cloud(cloud):
  cloud.states("", "FAILED", "ACTIVE")
  assert resume(cloud, "--restarts=1").returncode == 0
  assert verbs(cloud) == ["create", "delete", "create"]

  cloud.states("")
  cloud.fail("create", 9)
  done = resume(cloud, "--restarts=1")
  assert done.returncode == 1 and "failed with exit code 1; failure 2" in done.stderr
  assert verbs(cloud) == ["create", "create"]


def test_resume_does_not_repeat_a_command_that_is_wrong(cloud):
  cloud.training("[ $(basename $HOME) = 1 ] && exit 2; exit 1")
  done = resume(cloud)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == "error: the training rejects its command; its log says why"
  assert len(cloud.trained()) == 2


def test_install_waits_for_the_slice(cloud):
  cloud.states("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
  done = cloud.launch("tpu", "install", *SLICE, "--poll=0.01")
  assert done.returncode == 0
  waits = [line for line in done.stdout.splitlines() if line.startswith("t is ")]
  assert [line.split(";")[0] for line in waits] == ["t is WAITING_FOR_RESOURCES", "t is PROVISIONING"]
  cloud.states("FAILED")
  assert "error: t is FAILED: create it" in cloud.launch("tpu", "install", *SLICE).stderr


def test_nothing_is_deleted_without_a_yes(cloud):
  done = cloud.launch("tpu", "delete", *SLICE)
  assert done.returncode == 1 and done.stderr.startswith("error: Delete the slice t, ") and cloud.calls() == []
  assert cloud.launch("tpu", "delete", *SLICE, "--yes").returncode == 0
  assert verbs(cloud) == ["delete"]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["create", *SLICE, "--accelerator-type=v9-16"], "--accelerator-type = 'v9-16': expected one of v4, v5litepod,"),
    (["create", *SLICE, "--accelerator-type=v4"], "--accelerator-type = 'v4': expected one of"),
    (["start", *SLICE, "--config=no.py", "--workdir=/a"], "--config = 'no.py': expected an existing file"),
    (["start", *SLICE, "--config=/etc/passwd", "--workdir=/a"], "--config = '/etc/passwd': expected a file in"),
    (["start", *SLICE, "--config=configs/new.py", "--workdir=s3://a"], "--workdir = 's3://a': expected an absolute"),
    (["start", *SLICE, *TRAIN, "--config.a"], "argument = '--config.a': expected the form --config.FIELD=VALUE"),
    (["stop", *SLICE, "--config.a=1"], "argument = '--config.a=1': expected no config for stop"),
  ],
)
def test_bad_input_is_one_line(cloud, arguments, said):
  done = cloud.launch("tpu", *arguments)
  assert done.returncode == 2 and done.stdout == "" and cloud.calls() == []
  assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_without_the_tool_one_line_says_so(cloud):
  done = cloud.launch("tpu", "create", *SLICE, *ASKED, PATH="/nothing")
  assert done.returncode == 1
  assert done.stderr == (
    "error: gcloud is not installed: see https://cloud.google.com/sdk/docs/install; "
    "--dry-run prints the commands without it\n"
  )


def test_a_command_that_fails_ends_the_launch(cloud):
  cloud.fail("scp")
  done = cloud.launch("tpu", "install", *SLICE)
  assert done.returncode == 1 and "--quiet failed with exit code 1" in done.stderr.splitlines()[-1]
  assert not (cloud.folder / "hosts/0/moe").exists()
