"""Trains on a Cloud TPU slice: requests it as a queued resource, installs, starts, follows, resumes after preemption.

  python -m scripts.launch.tpu create  NAME --zone ZONE --accelerator-type v5litepod-16 --spot
  python -m scripts.launch.tpu install NAME --zone ZONE --nfs HOST:/EXPORT
  python -m scripts.launch.tpu start   NAME --zone ZONE --config configs/quickstart.py --workdir /mnt/moe/run
  python -m scripts.launch.tpu log     NAME --zone ZONE
  python -m scripts.launch.tpu stop    NAME --zone ZONE
  python -m scripts.launch.tpu delete  NAME --zone ZONE

`resume` takes the options of create, install and start, does those of these steps that are missing, and repeats that
whenever the slice is preempted, until the training has finished. --dry-run prints the commands of any verb.
"""

import argparse
import dataclasses
import shlex
import time

from moe.commands import Parser, run_script
from moe.config import require
from scripts.launch.shared import (
  ARCHIVE,
  LaunchError,
  Shell,
  add_dry_run,
  add_train_options,
  add_yes,
  confirm,
  pack,
  parse_options,
  require_shared,
  train_command,
)

# The software that Google specifies for each generation: https://cloud.google.com/tpu/docs/runtimes
_RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
_ON_HOST = "moe/source/scripts/launch/on_host.sh"
_STATE = f"if [ -e moe/source ]; then bash {_ON_HOST} state; else echo state=not-installed; fi"
_NOTHING_TO_DO = ("running", "waiting", "unreachable")
_FAILURES = {"failed": "the request for the slice failed", "ended": "the training ended with an error"}
_WRONG_COMMAND = "2"  # the exit code of our entry points for errors that a restart does not fix


@dataclasses.dataclass(frozen=True)
class QueuedSlice:
  """A queued resource and the slice that it requests, both of the same name."""

  name: str
  zone: str
  project: str | None
  shell: Shell

  def state(self, assumed: str) -> str:
    """The queued resource's state, such as WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED; empty if there is none."""
    # `describe` fails in the same way for what does not exist and for what it cannot reach.
    chosen = [f"--filter=name~/{self.name}$", "--format=value(state.state)"]
    return self.shell.read(self._gcloud("queued-resources", "list", *chosen), assumed).strip()

  def node_state(self) -> str:
    """The state of the slice itself, such as READY or PREEMPTED."""
    return self.shell.read(self._gcloud("tpu-vm", "describe", self.name, "--format=value(state)"), "READY").strip()

  def host_states(self, assumed: str) -> set[str]:
    """The run's states on the hosts: not-installed, idle, running, lost, or the exit code."""
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
    self.shell.run(
      self._ssh("all", f"{unpack} && {shlex.join(['bash', _ON_HOST, 'install', *([nfs] if nfs else [])])}")
    )

  def start(self, workdir: str, command: list[str]) -> None:
    self.ask("all", "start", workdir, *command)

  def ask(self, worker: str, *arguments: str) -> None:
    """Runs a verb of on_host.sh on one host, or on all."""
    self.shell.run(self._ssh(worker, shlex.join(["bash", _ON_HOST, *arguments])))

  def _ssh(self, worker: str, command: str) -> list[str]:
    return self._gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", f"--command={command}")

  def _gcloud(self, group: str, verb: str, *arguments: str) -> list[str]:
    where = [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])
    return ["gcloud", "compute", "tpus", group, verb, *arguments, *where, "--quiet"]


def wait_until_active(tpu: QueuedSlice, poll: float) -> None:
  """Waits while the request is queued, and prints its state.

  Raises:
    LaunchError: there is no such request, or it has failed or been suspended.
  """
  before = None
  while (state := tpu.state("ACTIVE")) != "ACTIVE":
    if state in ("", "FAILED", "SUSPENDED"):
      raise LaunchError(f"{tpu.name} is {state or 'missing'}: create it (again), or use `resume`")
    if state != before:
      print(f"{tpu.name} is {state}; waiting. Ctrl-C stops the waiting, not the request", flush=True)
    before = state
    time.sleep(poll)


def require_no_run(tpu: QueuedSlice) -> None:
  if "running" in tpu.host_states("idle"):
    raise LaunchError(f"{tpu.name} has a run in progress; `log` follows it, `stop` saves and ends it")


def observe(tpu: QueuedSlice) -> str:
  """The state in one word: of the request until the slice is ready, then of the run on it."""
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
    return "running"  # if not on all hosts, those will notice and stop
  if "not-installed" in hosts or not hosts:
    return "not-installed"
  if _WRONG_COMMAND in hosts:
    return "rejected"
  return {frozenset({"0"}): "finished", frozenset({"idle"}): "idle"}.get(frozenset(hosts), "ended")


def resume(tpu: QueuedSlice, options: argparse.Namespace) -> None:
  """Does the missing steps until the training has finished.

  Preemptions do not count as failures; after `options.restarts` failures in total, the next one is final.

  Raises:
    LaunchError: the training rejects its command, or there were too many failures.
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
    if seen == "rejected":
      raise LaunchError("the training rejects its command; its log says why")
    failure = _FAILURES.get(seen)
    if left or not failure:
      try:
        _repair(seen, tpu, options, command)
      except LaunchError as error:
        failure = str(error)
        print(failure, flush=True)
    if failure and not left:
      raise LaunchError(f"{failure}; failure {options.restarts + 1}, with --restarts {options.restarts}")
    left -= bool(failure)
    time.sleep(options.poll)
  print(f"{tpu.name}: the training has finished; the slice costs money until you `delete` it")


def _repair(seen: str, tpu: QueuedSlice, options: argparse.Namespace, command: list[str]) -> None:
  if seen in ("preempted", "failed"):
    tpu.delete()
  if seen in ("absent", "preempted", "failed"):
    tpu.create(options.accelerator_type, options.spot)
  if seen == "not-installed":
    tpu.install(options.nfs)
  if seen in ("not-installed", "idle", "ended"):
    tpu.start(options.workdir, command)


def _dry_resume(tpu: QueuedSlice, options: argparse.Namespace, command: list[str]) -> None:
  """A whole round: from a preempted slice to the resumed run."""
  tpu.state("SUSPENDED")
  _repair("preempted", tpu, options, command)
  tpu.state("ACTIVE")
  tpu.host_states("not-installed")
  _repair("not-installed", tpu, options, command)


def main(arguments: list[str] | None = None) -> None:
  options = parse_options(_parser(), arguments)
  tpu = QueuedSlice(options.name, options.zone, options.project, Shell(options.dry_run))
  if "accelerator_type" in options:
    kind, _, size = options.accelerator_type.partition("-")
    known = kind in _RUNTIMES and size.isdecimal()
    require(
      known, "--accelerator-type", options.accelerator_type, f"expected one of {', '.join(_RUNTIMES)}, then -SIZE"
    )
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
      confirm(f"Delete the slice {tpu.name}, its disks and any run on it? The workdir is kept.", options.yes, tpu.shell)
      tpu.delete()


def _parser() -> argparse.ArgumentParser:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("create", "install", "start", "log", "stop", "resume", "delete"):
    its = verbs.add_parser(verb)
    its.add_argument("name", help="of the slice and of its queued resource")
    its.add_argument("--zone", required=True)
    its.add_argument("--project", help="by default that of gcloud")
    add_dry_run(its)
    if verb in ("create", "resume"):
      its.add_argument("--accelerator-type", required=True, help="v4-16, v5litepod-16, v5p-16, v6e-16, ...")
      its.add_argument("--spot", action="store_true", help="cheaper, but may be preempted at any time")
    if verb in ("install", "resume"):
      its.add_argument("--nfs", metavar="HOST:/EXPORT", help="a disk to mount at /mnt/moe on every host")
      its.add_argument("--poll", type=float, default=60, help="seconds between two checks")
    if verb in ("start", "resume"):
      add_train_options(its)
    if verb == "resume":
      its.add_argument("--restarts", type=int, default=10, help="failures to recover from, not counting preemptions")
    if verb == "log":
      its.add_argument("--worker", default="0", help="the host to follow")
    if verb == "delete":
      add_yes(its)
  return parser


if __name__ == "__main__":
  run_script(main)
