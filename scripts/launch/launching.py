"""What the launch scripts share: commands run or only printed, the training command, this checkout as an archive."""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from moe.config import ConfigError, require

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHIVE = "build/launch/source.tar.gz"  # git ignores build/

_INSTALL = {
  "gcloud": "see https://cloud.google.com/sdk/docs/install",
  "kubectl": "gcloud components install kubectl",
  "xpk": "pip install xpk",
}


class LaunchError(RuntimeError):
  """A command that failed or is missing, or a cluster that is not in the state that was asked for."""


class Shell:
  """Runs commands in the checkout's root, each printed to stderr first; a dry run prints them to stdout instead."""

  def __init__(self, dry_run: bool):
    self.dry_run = dry_run

  def run(self, command: Sequence[str], text: str | None = None) -> None:
    """Runs a command to its end, with `text` as its input if there is any.

    Raises:
      LaunchError: it is not installed, or it failed.
    """
    if self.dry_run:
      print(shlex.join(command) + (f" <<'END'\n{text}END" if text else ""))
    else:
      self._call(command, input=text)

  def read(self, command: Sequence[str], assumed: str) -> str:
    """What a command writes to stdout; a dry run takes the answer `assumed` and says so.

    Raises:
      LaunchError: it is not installed, or it failed.
    """
    if self.dry_run:
      print(f"{shlex.join(command)}  # taken for granted here: {assumed}")
      return assumed
    return self._call(command, stdout=subprocess.PIPE)

  def _call(self, command: Sequence[str], **options: str | int | None) -> str:
    if shutil.which(command[0]) is None:
      how = _INSTALL.get(command[0], "run this where it is")
      raise LaunchError(f"{command[0]} is not installed: {how}; --dry-run only prints the commands")
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
      return subprocess.run(command, cwd=ROOT, text=True, check=True, **options).stdout
    except subprocess.CalledProcessError as error:
      raise LaunchError(f"{shlex.join(command)} ended with exit code {error.returncode}") from None


def add_dry_run(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")


def add_yes(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--yes", action="store_true", help="do not ask")


def add_train_options(parser: argparse.ArgumentParser) -> None:
  """The options of `moe.train`; `parse` adds the config's overrides as `options.overrides`."""
  parser.add_argument("--config", required=True, help="config file in this checkout; --config.FIELD=VALUE overrides")
  parser.add_argument("--workdir", required=True, help="folder of the run, on a disk that all hosts share")
  parser.set_defaults(overrides=[])


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
  """The command line's options, overrides of the config apart: argparse would take those with a space for positional.

  Raises:
    ConfigError: an override that is not --config.FIELD=VALUE, or one where nothing is trained.
  """
  arguments = sys.argv[1:] if arguments is None else arguments
  overrides = [argument for argument in arguments if argument.startswith("--config.")]
  options = parser.parse_args([argument for argument in arguments if argument not in overrides])
  for override in overrides:
    require("=" in override, "argument", override, "must have the form --config.FIELD=VALUE")
    require("overrides" in options, "argument", override, f"{options.verb} takes no config")
  options.overrides = overrides
  return options


def train_command(options: argparse.Namespace, python: str = "python") -> list[str]:
  """`moe.train` as every host runs it, from the checkout's root, waiting for the others.

  Raises:
    ConfigError: the config is not a file of this checkout, which is all that the hosts get.
  """
  config = pathlib.Path(options.config)
  given = ROOT / str(config).partition(":")[0]
  require(given.is_file(), "--config", options.config, "no such file")
  require(given.resolve().is_relative_to(ROOT), "--config", options.config, f"must lie in {ROOT}, which the hosts get")
  if config.is_absolute():
    config = config.relative_to(ROOT)
  trained = ["--config", str(config), "--workdir", options.workdir, *options.overrides]
  return [python, "-m", "moe.train", *trained, "--distributed"]


def require_shared(workdir: str) -> None:
  """Refuses what certainly is no folder on a disk that remote hosts share.

  Raises:
    ConfigError: the path is not absolute.
  """
  require(workdir.startswith("/"), "--workdir", workdir, "must be an absolute path, on a disk that all hosts share")


def pack(shell: Shell) -> None:
  """Makes the archive of this checkout: what git does not ignore, as it lies here, committed or not.

  An index of its own lets git write that tree without touching the user's.
  """
  folder = ARCHIVE.rpartition("/")[0]
  write = f'git add --all && git archive --format=tar.gz --output={ARCHIVE} "$(git write-tree)"'
  shell.run(["mkdir", "-p", folder])
  shell.run(["env", f"GIT_INDEX_FILE={folder}/index", "bash", "-c", write])


def confirm(question: str, yes: bool, shell: Shell) -> None:
  """Goes on if the user answers yes, or said so before.

  Raises:
    LaunchError: any other answer, or nobody to answer.
  """
  if yes or shell.dry_run:
    return
  if not sys.stdin.isatty():
    raise LaunchError(f"{question} Nobody is there to answer: give --yes")
  if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
    raise LaunchError("not confirmed, nothing was done")


def main(call: Callable[[], None]) -> None:
  """Runs a launch script; what went wrong is one line, Ctrl-C is none."""
  try:
    call()
  except (ConfigError, LaunchError) as error:
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    sys.exit(130)
