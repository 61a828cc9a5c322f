"""One run over several processes: how they find each other, and that none goes on or waits for ever without the others.

JAX aborts a process that loses another one, with a stack trace of C++, or lets it wait. Here each process has a thread
that gives signs of life through the key-value store of JAX's coordinator (process 0) and listens there for a reason to
end; process 0 looks who is silent. Whoever learns of a reason says it in one line and ends its process.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback

import jax
from jax._src import distributed  # there is no other way to the coordinator's key-value store

from moe.config import require

_LIFE, _REASON, _END = "moe/life", "moe/reason", "moe/end"
# A process is lost after this many looks that find no new sign of life.
_LOOKS = 10
# Seconds in which the coordinator stays for others to hear the reason.
_GRACE = 3
_DAY_IN_MS = 86_400_000
# What collectives and the coordinator's client say when the other side is gone.
_MAY_BE_A_LOSS = re.compile("gloo|nccl|unavailable|deadline_exceeded|aborted|cancelled", re.IGNORECASE)
_AGAIN = "start the same command on every host again: it goes on from the newest checkpoint"


class JoinError(RuntimeError):
  """The run's processes could not be joined."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands among those of its run.

  Attributes:
    coordinator: HOST:PORT where process 0 listens for the others.
    processes: how many there are.
    process: which of them this is, from 0.
  """

  coordinator: str
  processes: int
  process: int

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(":")
    require(bool(host) and port.isdecimal(), "coordinator", self.coordinator, "must be HOST:PORT")
    require(self.processes >= 1, "processes", self.processes, "must be at least 1")
    wanted = f"must be from 0 to {self.processes - 1}, as there are {self.processes} processes"
    require(0 <= self.process < self.processes, "process", self.process, wanted)


def join(place: Place | None, *, within: int, lost_after: int) -> None:
  """Waits until all processes of the run have come. Call it before anything else of JAX.

  Args:
    place: None for what the cluster says (Slurm, Open MPI, Cloud TPU, GKE).
    within: seconds after which one line says who is missing, and the process ends with exit code 2.
    lost_after: seconds without a sign of life after which a process counts as lost, and all others end.

  Raises:
    JoinError: no cluster says which processes there are, or process 0 cannot listen at its address.
  """
  global _watch
  _own_stderr()
  _end_aborts_with_a_word()
  timer = threading.Timer(within, _give_up_joining, [within])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      place.coordinator if place else None,
      place.processes if place else None,
      place.process if place else None,
      # JAX aborts at its own limits, so they come after ours.
      initialization_timeout=within + 60,
      heartbeat_timeout_seconds=2 * lost_after + 30,
    )
  except (RuntimeError, ValueError) as error:
    raise JoinError(_why_not_joined(error)) from None
  finally:
    timer.cancel()
  _watch = _Watch(lost_after)


def leave() -> None:
  """At a good end: waits for all processes to come to it."""
  if _watch is not None:
    _watch.leave()


def fail(error: BaseException, line: str | None = None, code: int = 1) -> None:
  """At a bad end: prints the error, tells the others, and ends this process. Does nothing where there are no others.

  Args:
    error: what was raised. If it can come from the loss of another process, that has time to become known, and is
      told instead.
    line: what a person has to know of it; None prints a traceback.
    code: exit code of this process; the others' is 1.
  """
  if _watch is None:
    return
  if line is None and _MAY_BE_A_LOSS.search(str(error)):
    _watch.wait_for_reason()
  report = f"error: {line}\n" if line else "".join(traceback.format_exception(error))
  first = (line or f"{type(error).__name__}: {error}").splitlines()[0]
  _watch.end(report, code, f"{_watch.name} stopped: {first}")


class _Watch:
  """The thread that gives signs of life and listens, and the way out of this process."""

  def __init__(self, lost_after: int):
    state = distributed.global_state
    self._client, self._address = state.client, state.coordinator_address
    self._index, self._count = state.process_id, state.num_processes
    self._lost_after = lost_after
    self.name = self._name(self._index, socket.gethostname())
    self._seen = {index: ("", 0) for index in range(self._count)}
    self._left, self._ending = threading.Event(), threading.Lock()
    threading.Thread(target=self._listen, name="moe-hosts", daemon=True).start()

  def leave(self) -> None:
    self._client.wait_at_barrier(_END, _DAY_IN_MS)
    self._left.set()
    jax.distributed.shutdown()

  def wait_for_reason(self) -> None:
    """Long enough for a loss to be noticed, which ends this process."""
    time.sleep(1.5 * self._lost_after)

  def end(self, report: str, code: int, reason: str) -> None:
    """Prints the report, tells the others the reason, and ends this process."""
    self._ending.acquire()  # for good: a second thread that comes here has nothing to add
    # An error says that they know a reason already, or cannot be reached.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(_REASON, reason)
    sys.stdout.flush()
    sys.stderr.flush()
    _say(report)
    if self._index == 0:
      time.sleep(_GRACE)
    # Not by JAX's farewell, which waits for those that are lost.
    os._exit(code)

  def _listen(self) -> None:
    number = 0
    while not self._left.is_set():
      number += 1
      reason = self._next(number)
      if reason is not None and not self._left.is_set():
        self.end(f"error: {reason}\n", 1, reason)

  def _next(self, number: int) -> str | None:
    """Gives a sign of life and listens for a while; the reason to end, if there is one."""
    try:
      life = f"{number} {socket.gethostname()}"
      self._client.key_value_set(f"{_LIFE}/{self._index}", life, allow_overwrite=True)
      lost = self._lost() if self._index == 0 else None
      return lost or self._client.blocking_key_value_get(_REASON, 1000 * self._lost_after // _LOOKS)
    except jax.errors.JaxRuntimeError as error:
      if f"timed out with key: {_REASON}" in str(error):
        return None
      return f"process 0 of {self._count}, the coordinator at {self._address}, is gone; {_AGAIN}"

  def _lost(self) -> str | None:
    """Who was found silent too often. Looks are counted, not seconds: this process may have been held up itself."""
    found = dict(self._client.key_value_dir_get(_LIFE))
    for index, (life, silent) in self._seen.items():
      new = found.get(f"{_LIFE}/{index}", "")
      self._seen[index] = (new, 0 if new != life else silent + 1)
      if silent >= _LOOKS:
        name = self._name(index, life.partition(" ")[2])
        return f"{name} gave no sign of life for {self._lost_after} s; {_AGAIN}"
    return None

  def _name(self, index: int, host: str) -> str:
    return f"process {index} of {self._count}" + (f" on {host}" if host else "")


_watch: _Watch | None = None


@functools.cache
def _own_stderr() -> int:
  """A descriptor that stays what it is: the usual one is turned off while TensorFlow is imported."""
  return os.dup(2)


def _say(text: str) -> None:
  os.write(_own_stderr(), text.encode())


def _give_up_joining(within: int) -> None:
  """Says what is missing, and ends the process."""
  state = distributed.global_state
  address = state.coordinator_address
  if address is None:
    missing = "the cluster did not say which processes there are"
  elif problem := _unreachable(address):
    missing = f"process 0 of {state.num_processes}, the coordinator at {address}, cannot be reached ({problem})"
  else:
    missing = f"not all {state.num_processes} processes came to the coordinator at {address}"
  _say(f"error: {missing}; given up after {within} s\n")
  os._exit(2)


def _unreachable(address: str) -> str | None:
  """What is wrong on the way to HOST:PORT; None if somebody listens there."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError as error:
    return error.strerror or str(error)
  return None


def _why_not_joined(error: Exception) -> str:
  address = distributed.global_state.coordinator_address
  if isinstance(error, ValueError):
    return "no cluster says which processes there are; give --coordinator, --processes and --process"
  if "RPC server" in str(error):
    return f"process 0 cannot listen at {address}: the port is taken or not allowed"
  return f"cannot join the run: {str(error).splitlines()[0]}"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _last_word(number: int) -> None:
  """The handler of SIGABRT. Python's own would run too late: JAX aborts at once when the coordinator is gone."""
  line = f"error: aborted for the reason above; most likely process 0, the coordinator, is gone; {_AGAIN}\n"
  _say(line)
  os._exit(1)


def _end_aborts_with_a_word() -> None:
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(_last_word, ctypes.c_void_p))
