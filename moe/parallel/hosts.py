"""One run over several processes: how they find each other, and how all end if one is lost.

A process that loses another one is aborted by JAX with a C++ stack trace, or left waiting forever. Here each process
has a thread that sends heartbeats through the key-value store of JAX's coordinator (process 0) and listens there for a
reason to end; process 0 checks for missing heartbeats. A process that learns of a reason prints it as one line and
ends.
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
from jax._src import distributed  # the only way to the coordinator's key-value store

from moe.config import UserError, first_line, require

_HEARTBEAT, _REASON, _END = "moe/heartbeat", "moe/reason", "moe/end"
# A process is lost after this many checks without a new heartbeat.
_CHECKS = 10
# Seconds that the coordinator stays up for the others to read the reason.
_GRACE = 3
_DAY_IN_MS = 86_400_000
# Words in the errors of collectives and of the coordinator's client when the other side is gone.
_MAY_BE_A_LOSS = re.compile("gloo|nccl|unavailable|deadline_exceeded|aborted|cancelled", re.IGNORECASE)
_AGAIN = "start the same command on every host again to resume from the newest checkpoint"


class JoinError(UserError):
  """The run's processes could not be joined."""


@dataclasses.dataclass(frozen=True)
class Member:
  """One process among those of its run.

  Attributes:
    coordinator: HOST:PORT that process 0 listens at.
    processes: their number.
    process: its index, from 0.
  """

  coordinator: str
  processes: int
  process: int

  def __post_init__(self) -> None:
    host, _, port = self.coordinator.rpartition(":")
    require(bool(host) and port.isdecimal(), "coordinator", self.coordinator, "expected HOST:PORT")
    require(self.processes >= 1, "processes", self.processes, "expected at least 1")
    wanted = f"expected 0 to {self.processes - 1}, as there are {self.processes} processes"
    require(0 <= self.process < self.processes, "process", self.process, wanted)


def join(member: Member | None, *, within: int, lost_after: int) -> None:
  """Waits until all processes of the run have joined. Call it before anything else in JAX.

  Args:
    member: None to ask the cluster (Slurm, Open MPI, Cloud TPU, GKE).
    within: seconds after which one line says who is missing, and the process ends with exit code 2.
    lost_after: seconds without a heartbeat after which a process counts as lost, and all others end.

  Raises:
    JoinError: no cluster describes the processes, or process 0 cannot listen at its address.
  """
  global _watch
  _own_stderr()
  _explain_aborts()
  timer = threading.Timer(within, _give_up_joining, [within])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      member.coordinator if member else None,
      member.processes if member else None,
      member.process if member else None,
      # JAX aborts at its own limits, so these come after ours.
      initialization_timeout=within + 60,
      heartbeat_timeout_seconds=2 * lost_after + 30,
    )
  except (RuntimeError, ValueError) as error:
    raise JoinError(_why_not_joined(error)) from None
  finally:
    timer.cancel()
  _watch = _Watch(lost_after)


def leave() -> None:
  """Call it when the run has succeeded: waits for all processes to get there."""
  if _watch is not None:
    _watch.leave()


def fail(error: BaseException, line: str | None = None, code: int = 1) -> None:
  """Call it when the run has failed: prints the error, tells the other processes, and ends this one.

  Does nothing if there are no others.

  Args:
    error: the exception. If the loss of another process may have caused it, waits for the loss to be noticed, which is
      then reported instead.
    line: what the user has to know; None prints a traceback.
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
  """The thread that sends heartbeats and listens for a reason to end, and the way to end this process."""

  def __init__(self, lost_after: int):
    state = distributed.global_state
    self._client, self._address = state.client, state.coordinator_address
    self._index, self._count = state.process_id, state.num_processes
    self._lost_after = lost_after
    self.name = self._name(self._index, socket.gethostname())
    self._seen = {index: ("", 0) for index in range(self._count)}  # last heartbeat, checks since then
    self._left, self._ending = threading.Event(), threading.Lock()
    threading.Thread(target=self._listen, name="moe-hosts", daemon=True).start()

  def leave(self) -> None:
    self._client.wait_at_barrier(_END, _DAY_IN_MS)
    self._left.set()
    jax.distributed.shutdown()

  def wait_for_reason(self) -> None:
    """Waits long enough for the loss of a process to be noticed, which ends this one."""
    time.sleep(1.5 * self._lost_after)

  def end(self, report: str, code: int, reason: str) -> None:
    """Prints the report, tells the others the reason, and ends this process."""
    self._ending.acquire()  # never released: a second thread has nothing to add
    # It fails if they have a reason already, or cannot be reached.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(_REASON, reason)
    sys.stdout.flush()
    sys.stderr.flush()
    _say(report)
    if self._index == 0:
      time.sleep(_GRACE)
    # Not by JAX's shutdown, which waits for the lost processes.
    os._exit(code)

  def _listen(self) -> None:
    number = 0
    while not self._left.is_set():
      number += 1
      reason = self._next(number)
      if reason is not None and not self._left.is_set():
        self.end(f"error: {reason}\n", 1, reason)

  def _next(self, number: int) -> str | None:
    """Sends a heartbeat and listens for a while; the reason to end, if there is one."""
    try:
      heartbeat = f"{number} {socket.gethostname()}"
      self._client.key_value_set(f"{_HEARTBEAT}/{self._index}", heartbeat, allow_overwrite=True)
      lost = self._lost() if self._index == 0 else None
      return lost or self._client.blocking_key_value_get(_REASON, 1000 * self._lost_after // _CHECKS)
    except jax.errors.JaxRuntimeError as error:
      if f"timed out with key: {_REASON}" in str(error):
        return None
      return f"process 0 of {self._count}, the coordinator at {self._address}, is gone; {_AGAIN}"

  def _lost(self) -> str | None:
    """Who missed too many heartbeats. Checks are counted, not seconds: this process may have been held up itself."""
    found = dict(self._client.key_value_dir_get(_HEARTBEAT))
    for index, (last, silent) in self._seen.items():
      new = found.get(f"{_HEARTBEAT}/{index}", "")
      silent = 0 if new != last else silent + 1
      self._seen[index] = (new, silent)
      if silent >= _CHECKS:
        name = self._name(index, last.partition(" ")[2])
        return f"{name} sent no heartbeat for {self._lost_after} s; {_AGAIN}"
    return None

  def _name(self, index: int, host: str) -> str:
    return f"process {index} of {self._count}" + (f" on {host}" if host else "")


_watch: _Watch | None = None


@functools.cache
def _own_stderr() -> int:
  """A copy of the descriptor of stderr: the original is closed while TensorFlow is imported."""
  return os.dup(2)


def _say(text: str) -> None:
  os.write(_own_stderr(), text.encode())


def _give_up_joining(within: int) -> None:
  """Prints what is missing, and ends the process."""
  state = distributed.global_state
  address = state.coordinator_address
  if address is None:
    missing = "the cluster did not describe the run's processes"
  elif problem := _unreachable(address):
    missing = f"process 0 of {state.num_processes}, the coordinator at {address}, cannot be reached ({problem})"
  else:
    missing = f"not all {state.num_processes} processes joined the coordinator at {address}"
  _say(f"error: {missing}; gave up after {within} s\n")
  os._exit(2)


def _unreachable(address: str) -> str | None:
  """Why HOST:PORT cannot be reached; None if a process listens there."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError as error:
    return error.strerror or str(error)
  return None


def _why_not_joined(error: Exception) -> str:
  address = distributed.global_state.coordinator_address
  if isinstance(error, ValueError):
    return "found no cluster that describes the run's processes; give --coordinator, --processes and --process"
  if "RPC server" in str(error):
    return f"process 0 cannot listen at {address}: the port is in use or not allowed"
  return f"cannot join the run: {first_line(error)}"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _explain_abort(number: int) -> None:
  """The handler of SIGABRT. A Python signal handler would run too late: JAX aborts when the coordinator is gone."""
  line = f"error: aborted for the reason above; most likely process 0, the coordinator, is gone; {_AGAIN}\n"
  _say(line)
  os._exit(1)


def _explain_aborts() -> None:
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(_explain_abort, ctypes.c_void_p))
