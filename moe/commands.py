"""What entry points and scripts share: the config flag, errors as one line, closed pipes, runs over several hosts."""

import argparse
import contextlib
import errno
import io
import logging
import os
import pathlib
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from moe.config import ConfigError, Text, UserError, require
from moe.config_file import fields_of, read_config, split_configs

_FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of the share of it that a user has

flags.disclaim_key_flags()  # the entry point that calls a function below owns its flags: `--help` lists them

_configs: list[list[str]] = []  # each config that was given, with its overrides
_fields_alone: list[bool] = []  # whether overrides may stand without a config
_verbs: dict[str, Callable[[], Callable[[], None]]] = {}
_chosen: list[Callable[[], None]] = []  # what the verb of the command line does


def define_config(*, several: bool = False) -> None:
  """The flag `--config`. Every field can be overridden, also those that the file leaves at their default."""
  often = "; may be repeated, with overrides for each" if several else ""
  flags.DEFINE_string(
    "config", None, f"Config file (.py or .json); --config.FIELD=VALUE overrides one of its fields{often}."
  )


def given_configs() -> list[list[str]]:
  """For each config of the command line `--config=FILE` and its overrides, for `moe.config_file.read_config`."""
  return _configs


def given_config() -> dict[str, Any]:
  """The tree of the one config of the command line.

  Raises:
    ConfigError: there is none, or more than one; or what is wrong with it.
  """
  files = [one[0].partition("=")[2] for one in _configs]
  require(len(files) == 1, "--config", files or None, "expected one config file")
  return read_config(_configs[0])


def define_fields() -> Callable[[], list[tuple[str, Text]]]:
  """`--config.FIELD=VALUE` without a config file, to change the config of a run; returns the function that gives them.

  It raises ConfigError if there is a config file too.
  """
  _fields_alone[:] = [True]

  def fields() -> list[tuple[str, Text]]:
    files = [one[0].partition("=")[2] for one in _configs[1:]]
    require(not files, "--config", files, "expected fields alone, --config.FIELD=VALUE: all else is the run's own")
    return fields_of(_configs[0][1:])

  return fields


def define_verbs(*verbs: Callable[[], Callable[[], None]]) -> Callable[[], None]:
  """The first argument of the command line is the name of one of these functions.

  Args:
    verbs: each defines the flags of its verb, which no other verb sees, and returns the function to call.

  Returns:
    the main.
  """
  _verbs.update({verb.__name__: verb for verb in verbs})
  return lambda: _chosen[0]()


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
  """Parses the command line (or `argv`) and calls `main`; an error that the user can fix is one line on stderr.

  The exit code is then 2. A run that started well and had to stop ends with exit code 1.
  """

  def call(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      _silence_orbax()
    with _with_other_hosts():
      if len(argv) > 1:
        raise ConfigError("argument", argv[1], "expected the form --NAME=VALUE")
      main()

  with _reported():
    app.run(call, argv, flags_parser=_parse)


def run_script(main: Callable[[], None]) -> None:
  """Calls the `main` of a script, which parses its arguments with a `Parser`; it ends as `run` does.

  What it cannot read or write is one line too, with exit code 1.
  """
  with _reported():
    try:
      main()
    except OSError as error:
      if isinstance(error, BrokenPipeError) or error.errno in _FULL:
        raise
      _fail(1, str(error))


class Parser(argparse.ArgumentParser):
  """The arguments of a script; a wrong one is one line, as in `run`."""

  def __init__(self, **options: Any):
    super().__init__(allow_abbrev=False, **options)

  def error(self, message: str) -> NoReturn:
    _fail(2, message)


def new_path(flag: str, value: str) -> pathlib.Path:
  """A path that a script will write to when its work is done, tried before that.

  Raises:
    ConfigError: something is there already, or nothing can be written there.
  """
  path = pathlib.Path(value).expanduser()
  try:
    path.open("x").close()
    path.unlink()
  except FileExistsError:
    raise ConfigError(flag, value, "expected a path that does not exist") from None
  except OSError as error:
    raise ConfigError(flag, value, f"expected a path that can be written ({error.strerror})") from None
  return path


def define_hosts() -> Callable[[], None]:
  """The flags of a run over several processes; returns the function that joins them. Call it before anything in JAX.

  It raises ConfigError if the flags contradict each other, and JoinError.
  """
  cluster = flags.DEFINE_bool(
    "distributed", False, "Join the processes that the cluster describes (Slurm, Open MPI, GKE)."
  )
  coordinator = flags.DEFINE_string("coordinator", None, "HOST:PORT that process 0 listens at.")
  processes = flags.DEFINE_integer("processes", None, "Number of processes.")
  process = flags.DEFINE_integer("process", None, "Index of this process, from 0.")
  within = flags.DEFINE_integer("join_timeout", 300, "Seconds in which all processes have to join.", lower_bound=1)
  lost = flags.DEFINE_integer(
    "lost_after", 60, "Seconds without a heartbeat after which a process is lost.", lower_bound=5
  )

  def join() -> None:
    ours = (coordinator, processes, process)
    given = {f"--{flag.name}": flag.value for flag in ours if flag.value is not None}
    on_slice = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (given or cluster.value or on_slice):
      return
    from moe.parallel import hosts

    if given:
      together = "expected all of --coordinator, --processes and --process, and no --distributed"
      require(len(given) == len(ours) and not cluster.value, *next(iter(given.items())), together)
    member = hosts.Member(coordinator.value, processes.value, process.value) if given else None
    hosts.join(member, within=within.value, lost_after=lost.value)

  return join


def _silence_orbax() -> None:
  """Orbax logs every step of its work, and prints pages about errors that it also raises."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  report = sys.unraisablehook

  def filtered(unraisable: Any) -> None:
    # After one failed write, the others return to an event loop that has ended.
    if str(unraisable.exc_value) != "Event loop is closed":
      report(unraisable)

  sys.unraisablehook = filtered


def _parse(argv: list[str]) -> list[str]:
  try:
    argv = _choose_verb(argv) if _verbs else argv
    if "config" in flags.FLAGS or _fields_alone:  # elsewhere absl refuses them, as any flag that is unknown
      _configs[:], argv = split_configs(argv, alone=bool(_fields_alone))
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(2, "; ".join(str(error).splitlines()))


def _choose_verb(argv: list[str]) -> list[str]:
  """Defines the flags of the verb that the command line names first; returns the others of its arguments."""
  program, *arguments = argv
  name = arguments[0] if arguments else None
  if name in ("--help", "-h", "-help", "--helpfull", "--helpshort"):
    return argv
  require(name in _verbs, "VERB", name, f"expected one of {', '.join(_verbs)}")
  _chosen[:] = [_verbs[str(name)]()]
  return [program, *arguments[1:]]


@contextlib.contextmanager
def _reported() -> Iterator[None]:
  """Ends the process with one line for what the user can fix, silently after Ctrl-C or if nobody reads its output."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: its encoding may lack characters of a text
  try:
    try:
      yield
    finally:
      if sys.stdout:  # None where it is closed
        sys.stdout.flush()
  except UserError as error:
    _fail(error.code, str(error))
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except BrokenPipeError:  # as of `| head -1`
    _discard(1, 2)
    sys.exit(128 + signal.SIGPIPE)
  except OSError as error:
    if error.errno not in _FULL:
      raise
    if error.filename is None:  # it may be the output
      _discard(1)
    _fail(1, str(error))


def _discard(*streams: int) -> None:
  """Drops what Python still holds for a stream, and would write when the process ends."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in streams:
    os.dup2(nowhere, stream)


@contextlib.contextmanager
def _with_other_hosts() -> Iterator[None]:
  """Ends together with the other processes of the run, if there are any."""
  from moe.parallel import hosts

  try:
    yield
    hosts.leave()
  except SystemExit:
    hosts.leave()  # all processes were asked to stop
    raise
  except UserError as error:
    hosts.fail(error, str(error), error.code)
    raise
  except BaseException as error:
    hosts.fail(error)
    raise


def _fail(code: int, message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(code)
