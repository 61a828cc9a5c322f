"""What all entry points share: the config flag, errors as one line, runs over several hosts."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from moe.config import ConfigError, require


def define_config(*, required: bool) -> flags.FlagHolder:
  """The flag `--config`; every field can be overridden, also those that the file leaves at their default."""
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
  """Separates the configs of a command line, which may have several, from its other arguments.

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
  """The tree of one of the configs that `split_configs` found.

  Raises:
    ConfigError: as `read_config`, and for an override of a field that cannot exist.
  """
  values = flags.FlagValues()
  holder = _define_config(values, ["", *arguments])
  try:
    values(["", *arguments])
  except Exception as error:  # a config file is a program: it can raise anything
    raise ConfigError("--config", arguments[0].removeprefix("--config="), _config_error(error)) from None
  return read_config(holder, values)


def read_config(holder: flags.FlagHolder, values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
  """The config's tree with its overrides.

  Raises:
    ConfigError: there is no such file, or it returns no config.
  """
  name = cast(Any, values["config"]).config_filename
  try:
    return holder.value.to_dict()
  except OSError:
    raise ConfigError("--config", name, "no such file") from None
  except AttributeError:
    raise ConfigError("--config", name, "expected its get_config() to return an ml_collections.ConfigDict") from None


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
    return flags.FLAGS(argv)
  except Exception as error:  # a config file is a program: it can raise anything
    _fail(2, str(error) if isinstance(error, flags.Error) else f"--config: {_config_error(error)}")


def _config_error(error: Exception) -> str:
  if isinstance(error, (KeyError, AttributeError)) and not isinstance(error.args[0], BaseException):
    return f"unknown field {' '.join(str(error.args[0]).split())}"
  # ml_collections wraps a config file's error with its whole traceback; the last line is the error.
  lines = [line for line in str(error).splitlines() if line.strip()]
  return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


@contextlib.contextmanager
def _report_errors() -> Iterator[None]:
  from moe.data.errors import DataError
  from moe.parallel import hosts
  from moe.training.checkpoint import CheckpointError
  from moe.training.trainer import TrainingStopped
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
