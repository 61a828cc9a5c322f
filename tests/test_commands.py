"""How mains and scripts end: one line for what the user can mend, in silence if nobody reads on."""

import os
import subprocess
import sys

import pytest

from moe.commands import Parser, new_path, run_script
from moe.config import ConfigError, UserError
from moe.data.errors import DataError


class Stopped(UserError):
  """Work that began well."""

  code = 1


def throw(error: BaseException) -> None:
  raise error


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (ConfigError("--size", 3, "expected at least 4"), 2, "error: --size = 3: expected at least 4\n"),
    (DataError("a.jsonl, line 3", "is not JSON"), 2, "error: a.jsonl, line 3: is not JSON\n"),
    (Stopped("training stopped"), 1, "error: training stopped\n"),
    (OSError(28, "No space left on device", "x.npz"), 1, "error: [Errno 28] No space left on device: 'x.npz'\n"),
    (KeyboardInterrupt(), 130, ""),
  ],
)
def test_what_the_user_can_mend_is_one_line_with_an_exit_code_of_its_own(error, code, line, capsys):
  with pytest.raises(SystemExit) as ended:
    run_script(lambda: throw(error))
  assert ended.value.code == code
  assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("another")])
def test_other_errors_keep_their_traceback(error):
  with pytest.raises(type(error)):
    run_script(lambda: throw(error))


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_platform_that_is_not_here_is_one_line(platform):
  program = "from moe import commands; from moe.parallel.mesh import make_mesh; commands.run_script(make_mesh)"
  environment = os.environ | {"JAX_PLATFORMS": platform}
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: JAX_PLATFORMS = '{platform}': expected a platform that JAX finds")
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("run", ["run", "run_script"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_ends_in_silence(run, lines):
  """One line is written when the process ends, many while it runs."""
  program = f"from moe import commands; commands.{run}(lambda: print('x\\n' * {lines}))"
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process.stdout.close()
  assert process.stderr.read() == ""
  assert process.wait() == 141


@pytest.mark.parametrize("run", ["run", "run_script"])
@pytest.mark.parametrize("flush", [True, False])
def test_output_to_a_full_disk_is_one_line(run, flush):
  program = f"from moe import commands; commands.{run}(lambda: print('x', flush={flush}))"
  with open("/dev/full", "w") as full:
    done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
  assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("run", ["run", "run_script"])
def test_closed_output_is_no_error(run):
  program = f"from moe import commands; commands.{run}(lambda: print('x'))"
  done = subprocess.run(f'"{sys.executable}" -c "{program}" >&-', shell=True, stderr=subprocess.PIPE, text=True)
  assert (done.returncode, done.stderr) == (0, "")


def test_a_character_that_the_terminal_lacks_is_escaped():
  program = "from moe import commands; commands.run(lambda: print('f\u00fcr \u732b'))"
  environment = os.environ | {"PYTHONIOENCODING": "ascii"}
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
  assert (done.returncode, done.stdout, done.stderr) == (0, "f\\xfcr \\u732b\n", "")


def test_training_waits_for_no_package_that_it_does_not_use(tmp_path):
  """TensorFlow is for its own data, and takes longer to import than all else; the others take a second each."""
  later = ("tensorflow", "seqio", "clu", "tensorflow_datasets", "scipy.stats", "sklearn", "matplotlib", "sentencepiece")
  program = f"""
import pathlib, sys
from moe.evaluation.run import run_config
from moe.training.metrics_file import MetricsWriter
folder = pathlib.Path({str(tmp_path)!r})
writer = MetricsWriter(folder / "metrics.jsonl", folder / "tensorboard")
writer.write(1, "train", {{"loss": 1.5}})
writer.close()
print([name for name in {later} if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("[]\n", "")
  assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_wrong_argument_is_one_line(capsys):
  parser = Parser()
  parser.add_argument("--size", type=int)
  for arguments, said in (
    (["--other"], "unrecognized arguments: --other"),
    (["--siz=3"], "unrecognized arguments: --siz=3"),
    (["--size=x"], "argument --size: invalid int value: 'x'"),
  ):
    with pytest.raises(SystemExit) as ended:
      parser.parse_args(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_path_to_write_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert new_path("--out", "~/new") == tmp_path / "new"
  assert new_path("--out", f"{tmp_path}/folder/") == tmp_path / "folder"
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "link").symlink_to("nowhere")
  for taken in (tmp_path, tmp_path / "link"):
    with pytest.raises(ConfigError, match=r"^--out = .*: expected a path that does not exist"):
      new_path("--out", str(taken))
  for impossible in ("missing/x", "x" * 300, "/proc/x"):
    with pytest.raises(ConfigError, match=r"^--out = .*: expected a path that can be written"):
      new_path("--out", str(tmp_path / impossible))
