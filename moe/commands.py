"""What all commands share: the config flag, one-line errors, several hosts."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from moe.config import ConfigError, require


def define_config(*, required: bool) -> flags.FlagHolder:
  """The flag `--config`. All fields can be overridden, including those that the file leaves at their defaults."""
  holder = _define_config(flags.FLAGS)
  if required:
    flags.mark_flag_as_required("config")
  return holder


def _define_config(values: flags.FlagValues, argv: list[str] | None = None) -> flags.FlagHolder:
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file; --config.FIELD=VALUE overrides one of its fields.",
    flag_values=values,
    lock_config=False,
    accept_new_attributes=True,
    sys_argv=argv,
  )


def split_configs(argv: list[str]) -> tuple[list[list[str]], list[str]]:
  """Separates the configs of a command line, which may give several, from its other arguments.

  Returns:
    The arguments of each config, `--config=FILE` and the `--config.FIELD=VALUE` that follow it; and all others.
  """
  configs: list[list[str]] = []
  others, rest = [], iter(argv)
  for argument in rest:
    if argument == "--config":
      argument = f"--config={next(rest, '')}"
    if argument.startswith("--config="):
      configs.append([argument])
    elif argument.startswith("--config.") and configs:
      configs[-1].append(argument)
    else:
      others.append(argument)
  return configs, others


def parse_config(arguments: list[str]) -> dict[str, Any]:
  """The tree of one config of `split_configs`.

  Raises:
    ConfigError: as `read_config`, and for an override of a field that cannot exist.
  """
  values = flags.FlagValues()
  holder = _define_config(values, ["", *arguments])
  try:
    values(["", *arguments])
  except Exception as error:  # a config file is a program: anything can go wrong in it
    raise ConfigError("--config", arguments[0].removeprefix("--config="), _config_error(error)) from None
  return read_config(holder, values)


def read_config(holder: flags.FlagHolder, values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
  """The config's tree with its overrides.

  Raises:
    ConfigError: there is no such file, or it returns no config.
  """
  name = values["config"].config_filename
  try:
    return holder.value.to_dict()
  except OSError:
    raise ConfigError("--config", name, "no such file") from None
  except AttributeError:
    raise ConfigError("--config", name, "expected a get_config() that returns an ml_collections.ConfigDict") from None


def run(main: Callable[[], None], argv: list[str] | None = None) -> None:
  """Parses the command line (or `argv`) and calls `main`. Errors that the user can fix are one line on stderr.

  The exit code is 2 for an error in the input, and 1 for a run that failed later.
  """

  def call(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
      _silence_orbax()
    with _report_errors():
      if len(argv) > 1:
        raise ConfigError("argument", argv[1], "not expected; every argument has the form --NAME=VALUE")
      main()

  app.run(call, argv, flags_parser=_parse)


def define_hosts() -> Callable[[], None]:
  """Defines the flags of a run with several processes; returns the function that joins them, to call before using JAX.

  It raises ConfigError if the flags contradict each other, and JoinError.
  """
  cluster = flags.DEFINE_bool("distributed", False, "Join the processes that the cluster names (Slurm, Open MPI, GKE).")
  process = [
    flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 listens for the others."),
    flags.DEFINE_integer("processes", None, "Number of processes."),
    flags.DEFINE_integer("process", None, "Number of this process, from 0."),
  ]
  within = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all processes.", lower_bound=1)
  lost = flags.DEFINE_integer("lost_after", 60, "Seconds of silence after which a process is lost.", lower_bound=5)

  def join() -> None:
    given = {f"--{flag.name}": flag.value for flag in process if flag.value is not None}
    on_slice = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (given or cluster.value or on_slice):
      return
    from moe.parallel import hosts

    if given:
      together = "expected all of --coordinator, --processes and --process, without --distributed"
      require(len(given) == len(process) and not cluster.value, *next(iter(given.items())), together)
    hosts.join(hosts.Place(*given.values()) if given else None, within=within.value, lost_after=lost.value)

  return join


def _silence_orbax() -> None:
  """Orbax logs all it does, and pages of errors that it also raises."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  report = sys.unraisablehook

  def filtered(unraisable) -> None:
    # After the first failed write the others return to an event loop that has ended.
    if str(unraisable.exc_value) != "Event loop is closed":
      report(unraisable)

  sys.unraisablehook = filtered


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except Exception as error:  # a config file is a program: anything can go wrong in it
    _fail(2, str(error) if isinstance(error, flags.Error) else f"--config: {_config_error(error)}")


def _config_error(error: Exception) -> str:
  if isinstance(error, (KeyError, AttributeError)) and not isinstance(error.args[0], BaseException):
    return f"unknown field {' '.join(str(error.args[0]).split())}"
  # ml_collections wraps an error in the config file with its whole traceback; the last line says what it was.
  lines = [line for line in str(error).splitlines() if line.strip()]
  return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


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


def _fail(code: int, message: str) -> None:
  print(f"error: {message}", file=sys.stderr)
  sys.exit(code)
