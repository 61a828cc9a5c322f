"""Stands in for gcloud: logs its calls, replays the states of a queued resource, runs the hosts' commands here.

The folder $FAKE holds calls.jsonl, the hosts' home folders (hosts/0, hosts/1), and what a test wants to happen:
states (one answer per line; the last one repeats), node (the slice's state), fails/VERB (one byte per failure to come).
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

FAKE = pathlib.Path(os.environ["FAKE"])
HOSTS = sorted((FAKE / "hosts").iterdir())


def main(arguments: list[str]) -> int:
  with (FAKE / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(["gcloud", *arguments]) + "\n")
  verb, options = arguments[3], dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
  failures = FAKE / "fails" / verb
  if failures.exists() and failures.read_text():
    failures.write_text(failures.read_text()[1:])
    print(f"ERROR: (gcloud.{verb}) as the test wanted", file=sys.stderr)
    return 1
  if verb == "list":
    states = (FAKE / "states").read_text().split("\n")
    (FAKE / "states").write_text("\n".join(states[1:] or states))
    print(states[0])
  elif verb == "describe":
    print((FAKE / "node").read_text())
  elif verb == "delete":
    for host in HOSTS:
      lose(host)
  elif verb == "scp":
    for host in HOSTS:
      shutil.copy(arguments[4], host / arguments[5].partition(":")[2])
  elif verb == "ssh":
    chosen = HOSTS if options["worker"] == "all" else [HOSTS[int(options["worker"])]]
    return max(ssh(host, options["command"]) for host in chosen)
  return 0


def ssh(host: pathlib.Path, command: str) -> int:
  before = trainings(host)
  code = subprocess.run(["bash", "-c", command], cwd=host, env=os.environ | {"HOME": str(host)}).returncode
  # The run is in the background; tests expect it to have begun.
  while "on_host.sh start" in command and code == 0 and trainings(host) == before:
    time.sleep(0.01)
  return code


def trainings(host: pathlib.Path) -> int:
  return len(list((FAKE / "trained").glob(f"{host.name}-*")))


def lose(host: pathlib.Path) -> None:
  """Takes the host away, with its processes and disk."""
  pid = host / "moe" / "run.pid"
  if pid.exists() and (host / "moe" / "run.end").read_text() == "lost\n":
    os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
  shutil.rmtree(host)
  host.mkdir()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
