"""Launching on a Slurm cluster: the submitted job, and what its batch script does when a training ends."""

import getpass
import shlex
import subprocess
import sys

import pytest

from tests.scripts.conftest import executable


@pytest.fixture
def start(cloud):
  return ["start", "moe", "--nodes=2", "--gpus-per-node=4", "--config=configs/new.py", f"--workdir={cloud.workdir}"]


def script_of(lines: list[str]) -> str:
  """The batch script that a dry run prints."""
  begin = next(number for number, line in enumerate(lines) if line.endswith("<<'END'"))
  return "\n".join(lines[begin + 1 : lines.index("END")]) + "\n"


def test_a_dry_run_prints_the_command_and_a_script_that_bash_can_read(cloud, start):
  lines = cloud.dry("slurm", *start, "--config.data.path=a 'b' \"c\"")
  assert shlex.split(lines[0]) == ["mkdir", "-p", f"{cloud.folder}/disk"]
  assert shlex.split(lines[1].removesuffix(" <<'END'")) == [
    "sbatch",
    "--job-name=moe",
    "--dependency=singleton",
    "--nodes=2",
    "--ntasks-per-node=4",
    "--gpus-per-node=4",
    f"--chdir={cloud.checkout}",
    f"--output={cloud.workdir}.log",
    "--open-mode=append",
    "--requeue",
    "--signal=TERM@300",
  ]
  script = script_of(lines)
  assert script.startswith("#!/bin/bash\n")
  subprocess.run(["bash", "-n"], input=script, text=True, check=True)
  (srun,) = [line for line in script.splitlines() if line.startswith("srun ")]
  train = ["--config", "configs/new.py", "--workdir", cloud.workdir, "--config.data.path=a 'b' \"c\"", "--distributed"]
  assert shlex.split(srun) == ["srun", "--wait=120", "--label", sys.executable, "-m", "moe.train", *train]


def test_another_main_runs_in_place_of_the_training(cloud):
  other = ["moe.study", "--study=a b", "--config.x", "--", "--help"]
  start = ["start", "moe", "--nodes=1", "--gpus-per-node=1", f"--workdir={cloud.workdir}", "--dry-run", "--", *other]
  done = cloud.launch("slurm", *start, PATH="/nothing")
  (srun,) = [line for line in done.stdout.splitlines() if line.startswith("srun ")]
  assert shlex.split(srun)[3:] == [sys.executable, "-m", *other]


def test_hosts_get_the_configs_path_in_the_checkout_however_it_is_given(cloud, start):
  link = cloud.folder / "link"
  link.symlink_to(cloud.checkout)
  others = [argument for argument in start if "--config" not in argument]
  for given in (link / "configs" / "new.py", "../checkout/configs/new.py", cloud.checkout / "configs" / "new.py"):
    lines = cloud.dry("slurm", *others, f"--config={given}:x")
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--config configs/new.py:x " in srun


def test_what_is_printed_is_what_is_run(cloud, start):
  assert cloud.same_as_printed("slurm", *start, "--config.data.path=$HOME 'b' \"c\" {command}")
  assert cloud.same_as_printed("slurm", "delete", "moe", "--yes")


@pytest.mark.parametrize(
  ("code", "state", "requeued"),
  [(0, "RUNNING", False), (143, "RUNNING", True), (143, "COMPLETING", False), (1, "RUNNING", False)],
  ids=["finished", "asked to stop", "cancelled", "failed"],
)
def test_only_a_training_that_was_asked_to_stop_is_requeued(cloud, start, code, state, requeued):
  cloud.answer("srun", code)
  cloud.answer("squeue", text=state)
  done = cloud.bash(script_of(cloud.dry("slurm", *start)).replace("#!/bin/bash", "set +e"), SLURM_JOB_ID="7")
  assert done.returncode == code
  called = cloud.calls()
  assert called[0][0] == "srun" and (["scontrol", "requeue", "7"] in called) == requeued


def test_the_log_is_next_to_the_run(cloud):
  assert cloud.dry("slurm", "log", "moe", "--workdir=/a/run") == ["tail -n 100 -F /a/run.log"]


def test_delete_asks_and_cancels_the_users_jobs_of_that_name(cloud):
  done = cloud.launch("slurm", "delete", "moe")
  assert done.returncode == 1 and cloud.calls() == []
  assert (
    "error: Cancel the jobs named moe? The workdir is kept. There is no terminal to answer at: give --yes"
    in done.stderr
  )
  assert cloud.launch("slurm", "delete", "moe", "--yes").returncode == 0
  assert cloud.calls() == [["scancel", f"--user={getpass.getuser()}", "--name=moe"]]


def test_bad_input_and_a_missing_tool_are_one_line(cloud, start):
  executable(cloud.bin / "mkdir", "#!/bin/bash\n")
  said = {
    "--nodes=0": "error: --nodes = 0: expected at least 1\n",
    "--config=no.py": "error: --config = 'no.py': expected an existing file\n",
  }
  for argument, error in said.items():
    assert cloud.launch("slurm", *start, argument).stderr == error
  one = "expected a config file to train, or else -- MODULE ARGUMENTS\n"
  both, neither = [*start, "--", "moe.study"], [argument for argument in start if "--config" not in argument]
  assert cloud.launch("slurm", *both).stderr == f"error: --config = 'configs/new.py': {one}"
  assert cloud.launch("slurm", *neither).stderr == f"error: --config = None: {one}"
  assert cloud.launch("slurm", *neither, "--").stderr == f"error: --config = None: {one}"
  said = cloud.launch("slurm", *neither, "--config.seed=1", "--", "moe.study").stderr
  assert said == "error: argument = ['--config.seed=1']: expected --config FILE before it\n"
  said = cloud.launch("slurm", "delete", "moe", "--", "moe.study").stderr
  assert said == "error: argument = '--': expected no command for delete\n"
  (cloud.bin / "sbatch").unlink()
  done = cloud.launch("slurm", *start, PATH=str(cloud.bin))
  assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: sbatch is not installed: run this on")
