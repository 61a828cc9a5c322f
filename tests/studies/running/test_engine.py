"""Sending runs to an engine: the launch scripts are the real ones, and the engine's tool is a stand-in."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from moe.config import ConfigError
from moe.studies.running.engine import name_in_engine, parse_runner, send
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job, Result
from tests.scripts.conftest import executable

COMMAND = ["--study=tiny", "--text=it's here/*.txt"]
_SBATCH = """#!/bin/bash
[ -e {folder}/broken ] && exit 1
number=$(ls {folder} | grep -c ^call)
printf '%s\\n' "$@" > {folder}/call-$number
cat > {folder}/script-$number
"""


def job(name, source=""):
  return Job(name, {"data": {"source": {"name": "text"}}}, source=source)


def finish(folder, job):
  folder.write_result(Result(job.name, {}, job.compared, "abc", 1.0, 10, {}, {}))


@pytest.fixture
def folder(tmp_path):
  return Folder(tmp_path / "study")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """Gives the runs that were sent since the last time, as the name of the job and the command of its process."""
  (tmp_path / "bin").mkdir()
  executable(tmp_path / "bin" / "sbatch", _SBATCH.format(folder=tmp_path))
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

  def sent():
    found = []
    for call in sorted(tmp_path.glob("call-*")):
      (name,) = re.findall("--job-name=(.*)", call.read_text())
      script = call.with_name(call.name.replace("call", "script"))
      (line,) = [line for line in script.read_text().splitlines() if line.startswith("srun ")]
      found.append((name, shlex.split(line)))
      call.unlink()
    return found

  return sent


def test_each_run_that_can_be_started_is_sent_once_and_the_rest_when_it_is_ready(folder, slurm, capfd):
  one, _, old, bad = jobs = [job("a/one"), job("a/two", source="a/one"), job("old"), job("bad")]
  finish(folder, old)
  folder.write_failed(bad, "no luck")
  send(folder, jobs, "slurm", [], COMMAND, "abc")
  sent = slurm()
  assert [re.sub("-[0-9a-f]{8}$", "", name) for name, _ in sent] == ["moe-a-one", "moe-bad"]
  assert sent[0][1] == [
    *("srun", "--wait=120", "--label", sys.executable, "-m", "moe.study"),
    *(*COMMAND, "--only=a/one"),
  ]
  said = capfd.readouterr().out.splitlines()
  assert said[0] == f"a/one is {sent[0][0]} in slurm"
  assert said[-1].startswith("2 runs were sent to slurm; 0 were sent before, and 1 wait for the run that they start")

  send(folder, jobs, "slurm", [], COMMAND, "abc")
  assert slurm() == []
  assert "0 runs were sent to slurm; 2 were sent before, and 1 wait" in capfd.readouterr().out

  finish(folder, one)
  folder.write_failed(bad, "no luck again")
  send(folder, jobs, "slurm", [], COMMAND, "abc")
  again = slurm()
  assert [command[-1] for _, command in again] == ["--only=a/two", "--only=bad"]
  assert again[1][0] != sent[1][0]  # an engine may still have the one that failed


def test_a_run_is_sent_again_when_its_file_was_deleted(folder, slurm):
  send(folder, [job("one"), job("two")], "slurm", [], COMMAND, "abc")
  assert len(slurm()) == 2
  (folder.root / "sent" / "one.json").unlink()
  send(folder, [job("one"), job("two")], "slurm", [], COMMAND, "abc")
  assert [command[-1] for _, command in slurm()] == ["--only=one"]
  shutil.rmtree(folder.root / "sent")
  send(folder, [job("one"), job("two")], "slurm", [], COMMAND, "abc")
  assert len(slurm()) == 2


def test_what_the_engine_refuses_counts_as_not_sent(folder, slurm, tmp_path, capfd):
  (tmp_path / "broken").touch()
  with pytest.raises(StudyError, match=r"0 of 2 runs were sent: scripts\.launch\.slurm failed for one, two"):
    send(folder, [job("one"), job("two")], "slurm", [], COMMAND, "abc")
  assert "error: sbatch " in capfd.readouterr().err
  (tmp_path / "broken").unlink()
  send(folder, [job("one"), job("two")], "slurm", [], COMMAND, "abc")
  assert [command[-1] for _, command in slurm()] == ["--only=one", "--only=two"]


def test_a_dry_run_prints_the_commands_of_xpk_and_writes_nothing(folder, capfd):
  where = ["cluster", "--zone=z", "--tpu-type=v5litepod-8"]
  send(folder, [job("one")], "xpk", where, COMMAND, "abc", dry=True)
  *_, workload, said = capfd.readouterr().out.splitlines()
  *options, command, cluster, zone = shlex.split(workload)
  assert "--tpu-type=v5litepod-8" in options and any(one.startswith("--workload=moe-one-") for one in options)
  assert (cluster, zone) == ("--cluster=cluster", "--zone=z")
  run = shlex.split(command.removeprefix("--command=")).index("exec")
  assert shlex.split(command.removeprefix("--command="))[run:] == [
    *("exec", "python", "-m", "moe.study", *COMMAND, "--only=one")
  ]
  assert said.startswith("1 runs would be sent to xpk; 0 were sent before, and 0 wait")
  assert not folder.root.exists()


@pytest.mark.parametrize("name", ["one", "RTE/expert_choice/rate-0.003/seed-0", "9" * 80, "é/-"])
def test_names_in_an_engine_are_those_that_kubernetes_allows_and_differ(name, folder, tmp_path):
  found = name_in_engine(folder, job(name), 1)
  assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", found) and len(found) <= 39
  others = {name_in_engine(folder, job(f"{name}0"), 1), name_in_engine(Folder(tmp_path / "other"), job(name), 1)}
  assert len(others | {found, name_in_engine(folder, job(name), 2)}) == 4


def test_a_runner_has_the_arguments_of_its_launch_script():
  assert parse_runner("local") == ("local", [])
  assert parse_runner("slurm") == ("slurm", [])
  assert parse_runner("xpk 'a b' --zone=z") == ("xpk", ["a b", "--zone=z"])
  for wrong in ("", "k8s", "local --fast", "Slurm", 'xpk "a'):
    with pytest.raises(ConfigError, match=r"^--runner = .*: expected"):
      parse_runner(wrong)


def test_the_command_lists_what_is_missing_or_prints_what_it_would_send(tmp_path, monkeypatch):
  (tmp_path / "a b.txt").write_text("text\n")
  for task in ("super_glue/cb/1.0.2", "glue/wnli/2.0.0"):  # those of this budget
    (tmp_path / "tfds" / task).mkdir(parents=True)
    (tmp_path / "tfds" / task / "dataset_info.json").write_text("{}")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  same = ["--study=finetune", "--budget=smoke", f"--workdir={tmp_path}/study", f"--text={tmp_path}/a b.txt"]

  def printed(*arguments):
    command = [sys.executable, "-m", "moe.study", *same, "--dry_run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

  first, second, third = "pretrained/dense/seed-0", "pretrained/expert_choice/seed-0", "cb/dense/rate-0.01/seed-0"
  _, *missing, said = printed()
  assert [line.partition(":")[0] for line in missing[:3]] == [first, second, third]
  assert said == "0 of 4 runs are finished"
  sent = printed("--runner=slurm --gpus-per-node=2")
  runs = [shlex.split(line) for line in sent if line.startswith("srun ")]
  assert [run[-6:] for run in runs] == [["moe.study", *same, f"--only={name}"] for name in (first, second)]
  assert sum("--gpus-per-node=2 " in line for line in sent) == 2
  assert sent[-1].startswith("2 runs would be sent to slurm; 0 were sent before, and 2 wait")
  assert not (tmp_path / "study").exists()
