"""What the launch scripts share: running or printing commands, the training command, an archive of this checkout."""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from moe.config import UserError, require

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARCHIVE = "build/launch/source.tar.gz"  # git ignores build/

_INSTALL = {
  "gcloud": "see https://cloud.google.com/sdk/docs/install",
  "kubectl": "gcloud components install kubectl",
  "xpk": "pip install xpk",
}


class LaunchError(UserError):
  """A command failed or is missing, or a cluster is not in the required state."""

  code = 1


class Shell:
  """Runs commands in the root of the checkout and prints each to stderr; a dry run only prints them, to stdout."""

  def __init__(self, dry_run: bool):
    self.dry_run = dry_run

  def run(self, command: Sequence[str], text: str | None = None) -> None:
    """Runs a command to its end, with `text`, if given, as its input.

    Raises:
      LaunchError: the command is not installed, or failed.
    """
    if self.dry_run:
      print(shlex.join(command) + (f" <<'END'\n{text}END" if text else ""))
    else:
      self._call(command, input=text)

  def read(self, command: Sequence[str], assumed: str) -> str:
    """What a command prints to stdout; a dry run assumes the answer `assumed` and says so.

    Raises:
      LaunchError: the command is not installed, or failed.
    """
    if self.dry_run:
      print(f"{shlex.join(command)}  # assumed answer: {assumed}")
      return assumed
    return self._call(command, stdout=subprocess.PIPE)

  def _call(self, command: Sequence[str], **options: Any) -> str:
    if shutil.which(command[0]) is None:
      how = _INSTALL.get(command[0], "run this on a machine that has it")
      raise LaunchError(f"{command[0]} is not installed: {how}; --dry-run prints the commands without it")
    print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
      return subprocess.run(command, cwd=ROOT, text=True, check=True, **options).stdout
    except subprocess.CalledProcessError as error:
      raise LaunchError(f"{shlex.join(command)} failed with exit code {error.returncode}") from None


def add_dry_run(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--dry-run", action="store_true", help="print the commands instead of running them")


def add_yes(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def add_train_options(parser: argparse.ArgumentParser) -> None:
  """The options of `moe.train`, or `-- MODULE ARGUMENTS` for another main.

  `parse_options` adds the config's overrides as `options.overrides`, and what follows `--` as `options.module`.
  """
  parser.add_argument("--config", help="config file in this checkout; --config.FIELD=VALUE overrides")
  parser.add_argument(
    "--workdir", required=True, help="folder of the run, on a disk shared by all hosts or in a bucket, gs://"
  )
  parser.epilog = "In place of --config, `-- MODULE ARGUMENTS` at the end runs another main, such as moe.study."
  parser.set_defaults(overrides=[], module=[])


def parse_options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
  """Parses the command line. Overrides of the config bypass argparse, which takes those with a space for positionals.

  Raises:
    ConfigError: an override is not --config.FIELD=VALUE, or the verb trains nothing.
  """
  arguments = sys.argv[1:] if arguments is None else arguments
  end = arguments.index("--") if "--" in arguments else len(arguments)
  arguments, module = arguments[:end], arguments[end + 1 :]
  overrides = [argument for argument in arguments if argument.startswith("--config.")]
  options = parser.parse_args([argument for argument in arguments if argument not in overrides])
  for override in overrides:
    require("=" in override, "argument", override, "expected the form --config.FIELD=VALUE")
    require("overrides" in options, "argument", override, f"expected no config for {options.verb}")
  require(not module or "module" in options, "argument", "--", f"expected no command for {options.verb}")
  options.overrides, options.module = overrides, module
  return options


def train_command(options: argparse.Namespace, python: str = "python") -> list[str]:
  """The command of `moe.train`, or of the main that was named, for every host, to run in the root of the checkout.

  Raises:
    ConfigError: the config is not a file of this checkout, which is all that the hosts get; or there are both a config
      and another main, or neither.
  """
  one = "expected a config file to train, or else -- MODULE ARGUMENTS"
  require((options.config is None) == bool(options.module), "--config", options.config, one)
  if options.module:
    require(not options.overrides, "argument", options.overrides, "expected --config FILE before it")
    return [python, "-m", *options.module]
  path, *argument = options.config.partition(":")
  given = (ROOT / path).resolve()
  require(given.is_file(), "--config", options.config, "expected an existing file")
  inside = f"expected a file in {ROOT}, which is all that the hosts get"
  require(given.is_relative_to(ROOT), "--config", options.config, inside)
  config = "".join([str(given.relative_to(ROOT)), *argument])
  trained = ["--config", config, "--workdir", options.workdir, *options.overrides]
  return [python, "-m", "moe.train", *trained, "--distributed"]


def require_shared(workdir: str) -> None:
  """Refuses a workdir that cannot be on a disk shared by remote hosts, nor in a bucket.

  Raises:
    ConfigError: the path is not absolute.
  """
  expected = "expected an absolute path, on a disk shared by all hosts, or gs://BUCKET/PATH"
  require(workdir.startswith(("/", "gs://")), "--workdir", workdir, expected)


def pack(shell: Shell) -> None:
  """Archives this checkout as it is: all files that git does not ignore, committed or not.

  A separate index lets git write that tree without touching the user's.
  """
  folder = ARCHIVE.rpartition("/")[0]
  write = f'git add --all && git archive --format=tar.gz --output={ARCHIVE} "$(git write-tree)"'
  shell.run(["mkdir", "-p", folder])
  shell.run(["env", f"GIT_INDEX_FILE={folder}/index", "bash", "-c", write])


def confirm(question: str, yes: bool, shell: Shell) -> None:
  """Returns if the user answers yes, or did so in advance.

  Raises:
    LaunchError: any other answer, or no terminal to answer at.
  """
  if yes or shell.dry_run:
    return
  if not sys.stdin.isatty():
    raise LaunchError(f"{question} There is no terminal to answer at: give --yes")
  if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
    raise LaunchError("not confirmed; nothing was done")
