"""Trains on a Cloud TPU slice: asks for it by a queued resource, installs, starts, follows, goes on after preemption.

  python scripts/launch/tpu.py create  NAME --zone ZONE --accelerator-type v5litepod-16 --spot
  python scripts/launch/tpu.py install NAME --zone ZONE --nfs HOST:/EXPORT
  python scripts/launch/tpu.py start   NAME --zone ZONE --config configs/quickstart.py --workdir /mnt/moe/run
  python scripts/launch/tpu.py log     NAME --zone ZONE
  python scripts/launch/tpu.py stop    NAME --zone ZONE
  python scripts/launch/tpu.py delete  NAME --zone ZONE

`resume` takes the options of create, install and start, does whatever of these is missing, and does so again each time
the slice is taken away, until the training has finished. --dry-run prints the commands of any of them.
"""

import argparse
import dataclasses
import shlex
import time

from launching import (
  ARCHIVE,
  LaunchError,
  Shell,
  add_dry_run,
  add_train_options,
  add_yes,
  confirm,
  main,
  pack,
  parse,
  require_shared,
  train_command,
)

from moe.config import require

# The software that Google names for each generation: https://cloud.google.com/tpu/docs/runtimes
_RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
_ON_HOST = ["bash", "moe/source/scripts/on_host.sh"]
_STATE = "if [ -e moe/source ]; then bash moe/source/scripts/on_host.sh state; else echo state=not-installed; fi"
_NOTHING_TO_DO = ("running", "waiting", "unreachable")
_FAILURES = {"failed": "the request for the slice failed", "ended": "the training ended with an error"}
_WRONG_COMMAND = "2"  # the exit code of our mains for what starting again does not mend


@dataclasses.dataclass(frozen=True)
class Slice:
  """A queued resource and the slice of the same name that it stands for."""

  name: str
  zone: str
  project: str | None
  shell: Shell

  def state(self, assumed: str) -> str:
    """The queued resource's state, such as WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED; empty where there is none."""
    # `describe` fails alike for what does not exist and for what it cannot reach.
    chosen = [f"--filter=name~/{self.name}$", "--format=value(state.state)"]
    return self.shell.read(self._gcloud("queued-resources", "list", *chosen), assumed).strip()

  def node_state(self) -> str:
    """The slice's own state, such as READY or PREEMPTED."""
    return self.shell.read(self._gcloud("tpu-vm", "describe", self.name, "--format=value(state)"), "READY").strip()

  def host_states(self, assumed: str) -> set[str]:
    """What the hosts say of the run: not-installed, idle, running, lost, or the run's exit code."""
    lines = self.shell.read(self._ssh("all", _STATE), f"state={assumed}").splitlines()
    return {line.removeprefix("state=") for line in lines if line.startswith("state=")}

  def create(self, accelerator_type: str, spot: bool) -> None:
    runtime = _RUNTIMES[accelerator_type.partition("-")[0]]
    what = [f"--node-id={self.name}", f"--accelerator-type={accelerator_type}", f"--runtime-version={runtime}"]
    command = self._gcloud("queued-resources", "create", self.name, *what)
    self.shell.run(command + ["--spot"] * spot)

  def delete(self) -> None:
    self.shell.run(self._gcloud("queued-resources", "delete", self.name, "--force"))

  def install(self, nfs: str | None) -> None:
    pack(self.shell)
    self.shell.run(self._gcloud("tpu-vm", "scp", ARCHIVE, f"{self.name}:moe.tar.gz", "--worker=all"))
    unpack = "rm -rf moe/source && mkdir -p moe/source && tar -xzf moe.tar.gz -C moe/source"
    self.shell.run(self._ssh("all", f"{unpack} && {shlex.join([*_ON_HOST, 'install', *([nfs] if nfs else [])])}"))

  def start(self, workdir: str, command: list[str]) -> None:
    self.ask("all", "start", workdir, *command)

  def ask(self, worker: str, *arguments: str) -> None:
    """Runs a verb of on_host.sh on one host or all."""
    self.shell.run(self._ssh(worker, shlex.join([*_ON_HOST, *arguments])))

  def _ssh(self, worker: str, command: str) -> list[str]:
    return self._gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={command}")

  def _gcloud(self, group: str, verb: str, *arguments: str) -> list[str]:
    where = [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])
    return ["gcloud", "compute", "tpus", group, verb, *arguments, *where, "--quiet"]


def wait_until_active(tpu: Slice, poll: float) -> None:
  """Waits for as long as the request is in the queue, saying so.

  Raises:
    LaunchError: there is no such request, or it will not be met any more.
  """
  before = None
  while (state := tpu.state("ACTIVE")) != "ACTIVE":
    if state in ("", "FAILED", "SUSPENDED"):
      raise LaunchError(f"{tpu.name} is {state or 'not there'}: create it (again), or let `resume` do so")
    if state != before:
      print(f"{tpu.name} is {state}; waiting. Ctrl-C only ends the waiting", flush=True)
    before = state
    time.sleep(poll)


def require_no_run(tpu: Slice) -> None:
  if "running" in tpu.host_states("idle"):
    raise LaunchError(f"a run is going on on {tpu.name}; `log` follows it, `stop` saves and ends it")


def observe(tpu: Slice) -> str:
  """Where things stand, in one word: that of the slice until it is there, then that of the run on it."""
  try:
    state = tpu.state("ACTIVE")
    if state != "ACTIVE":
      return {"": "absent", "SUSPENDED": "preempted", "FAILED": "failed"}.get(state, "waiting")
    try:
      return _of_run(tpu.host_states("running"))
    except LaunchError:
      return "preempted" if tpu.node_state() in ("PREEMPTED", "TERMINATED") else "unreachable"
  except LaunchError:
    return "unreachable"


def _of_run(hosts: set[str]) -> str:
  if "running" in hosts:
    return "running"  # if not everywhere: the rest will notice and stop
  if "not-installed" in hosts or not hosts:
    return "not-installed"
  if _WRONG_COMMAND in hosts:
    return "refused"
  return {frozenset({"0"}): "finished", frozenset({"idle"}): "idle"}.get(frozenset(hosts), "ended")


def resume(tpu: Slice, options: argparse.Namespace) -> None:
  """Does what is missing until the training has finished.

  A preemption may happen any number of times; what fails otherwise is tried again `options.restarts` times in all.

  Raises:
    LaunchError: the training refuses its command, or too much has failed.
  """
  command = train_command(options)
  if tpu.shell.dry_run:
    _dry_resume(tpu, options, command)
    return
  left, before = options.restarts, None
  while (seen := observe(tpu)) != "finished":
    if seen != before or seen not in _NOTHING_TO_DO:
      print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {tpu.name}: {seen}", flush=True)
    before = seen
    if seen == "refused":
      raise LaunchError("the training refuses its command; its log says why")
    failure = _FAILURES.get(seen)
    if left or not failure:
      try:
        _mend(seen, tpu, options, command)
      except LaunchError as error:
        failure = str(error)
        print(failure, flush=True)
    if failure and not left:
      raise LaunchError(f"{failure}; that was failure {options.restarts + 1}, and --restarts is {options.restarts}")
    left -= bool(failure)
    time.sleep(options.poll)
  print(f"{tpu.name}: the training has finished; `delete` ends the slice's costs")


def _mend(seen: str, tpu: Slice, options: argparse.Namespace, command: list[str]) -> None:
  if seen in ("preempted", "failed"):
    tpu.delete()
  if seen in ("absent", "preempted", "failed"):
    tpu.create(options.accelerator_type, options.spot)
  if seen == "not-installed":
    tpu.install(options.nfs)
  if seen in ("not-installed", "idle", "ended"):
    tpu.start(options.workdir, command)


def _dry_resume(tpu: Slice, options: argparse.Namespace, command: list[str]) -> None:
  """A whole round: from a slice that was taken away to the run going on."""
  tpu.state("SUSPENDED")
  _mend("preempted", tpu, options, command)
  tpu.state("ACTIVE")
  tpu.host_states("not-installed")
  _mend("not-installed", tpu, options, command)


def launch(arguments: list[str] | None = None) -> None:
  options = parse(_parser(), arguments)
  tpu = Slice(options.name, options.zone, options.project, Shell(options.dry_run))
  if "accelerator_type" in options:
    kind, _, size = options.accelerator_type.partition("-")
    known = kind in _RUNTIMES and size.isdecimal()
    require(known, "--accelerator-type", options.accelerator_type, f"must be one of {', '.join(_RUNTIMES)}, and -SIZE")
  if "workdir" in options:
    require_shared(options.workdir)
  match options.verb:
    case "create":
      tpu.create(options.accelerator_type, options.spot)
    case "install":
      wait_until_active(tpu, options.poll)
      require_no_run(tpu)
      tpu.install(options.nfs)
    case "start":
      command = train_command(options)
      require_no_run(tpu)
      tpu.start(options.workdir, command)
    case "log":
      tpu.ask(options.worker, "log")
    case "stop":
      tpu.ask("all", "stop")
    case "resume":
      resume(tpu, options)
    case "delete":
      confirm(f"Delete the slice {tpu.name}, its disks and any run on it? The workdir stays.", options.yes, tpu.shell)
      tpu.delete()


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("create", "install", "start", "log", "stop", "resume", "delete"):
    its = verbs.add_parser(verb, allow_abbrev=False)
    its.add_argument("name", help="of the slice and of its queued resource")
    its.add_argument("--zone", required=True)
    its.add_argument("--project", help="gcloud's own by default")
    add_dry_run(its)
    if verb in ("create", "resume"):
      its.add_argument("--accelerator-type", required=True, help="v4-16, v5litepod-16, v5p-16, v6e-16, ...")
      its.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    if verb in ("install", "resume"):
      its.add_argument("--nfs", metavar="HOST:/EXPORT", help="a disk to mount at /mnt/moe on every host")
      its.add_argument("--poll", type=float, default=60, help="seconds between two looks")
    if verb in ("start", "resume"):
      add_train_options(its)
    if verb == "resume":
      its.add_argument("--restarts", type=int, default=10, help="failures to get over, preemptions not counted")
    if verb == "log":
      its.add_argument("--worker", default="0", help="the host to follow")
    if verb == "delete":
      add_yes(its)
  return parser


if __name__ == "__main__":
  main(launch)
