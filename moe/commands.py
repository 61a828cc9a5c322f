"""What all entry points share: the config flag, errors as one line, runs over several hosts."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from moe.config import ConfigError, require
from moe.config_file import read_config, split_configs

flags.disclaim_key_flags()  # the entry point that calls a function below owns its flags: `--help` lists them

_configs: list[list[str]] = []  # each config that was given, with its overrides


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


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
  """Parses the command line (or `argv`) and calls `main`; an error that the user can fix is one line on stderr.

  The exit code is then 2. A run that started well and had to stop ends with exit code 1.
  """

  def call(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      _silence_orbax()
    with _report_errors():
      if len(argv) > 1:
        raise ConfigError("argument", argv[1], "expected the form --NAME=VALUE")
      main()

  app.run(call, argv, flags_parser=_parse)


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
    _configs[:], rest = split_configs(argv)
    return flags.FLAGS(rest)
  except (flags.Error, ConfigError) as error:
    _fail(2, str(error))


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
  from moe.data.errors import DataError
  from moe.parallel import hosts
  from moe.training.checkpoint import CheckpointError
  from moe.training.hooks import TrainingStopped
  from moe.training.workdir import WorkdirError

  try:
    yield
    hosts.leave()
  except SystemExit:
    hosts.leave()  # all processes were asked to stop
    raise
  except (ConfigError, DataError, WorkdirError, hosts.JoinError) as error:
    hosts.fail(error, str(error), 2)
    _fail(2, str(error))
  except (CheckpointError, TrainingStopped) as error:
    hosts.fail(error, str(error), 1)
    _fail(1, str(error))
  except BaseException as error:
    hosts.fail(error)
    raise


def _fail(code: int, message: str) -> NoReturn:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(code)
