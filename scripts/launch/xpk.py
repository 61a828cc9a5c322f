r"""Trains on a Cloud TPU slice of a GKE cluster, through XPK: cluster and disk, start, follow, delete.

  python scripts/launch/xpk.py create CLUSTER --zone ZONE --tpu-type v5litepod-16 --spot
  python scripts/launch/xpk.py start  CLUSTER --zone ZONE --tpu-type v5litepod-16 --name run1 \
    --config configs/quickstart.py --workdir /mnt/moe/run1
  python scripts/launch/xpk.py log    CLUSTER --zone ZONE --name run1
  python scripts/launch/xpk.py stop   CLUSTER --zone ZONE --name run1
  python scripts/launch/xpk.py delete CLUSTER --zone ZONE

`create` makes the cluster and a Filestore disk, mounted at /mnt/moe in every container. There is no install, as each
container installs this checkout when it starts, and no resume, as Kubernetes starts what was preempted or has failed
again. `pip install xpk`; XPK itself needs gcloud, kubectl and crane or docker. --dry-run prints the commands.
"""

import argparse
import shlex

from launching import (
  ARCHIVE,
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

_IMAGE = "python:3.11"
_SOURCE = "build/launch/source"  # XPK puts this folder into the image


def create(options: argparse.Namespace, shell: Shell) -> None:
  """Makes the cluster, with nodes for one slice, and the disk for workdirs."""
  cluster = ["--enable-gcpfilestore-csi-driver", _capacity(options)]
  shell.run(_xpk(options, "cluster", "create", f"--tpu-type={options.tpu_type}", *cluster))
  disk = ["--type=gcpfilestore", "--vol=moe", "--size=1024", "--tier=BASIC_HDD", "--access-mode=ReadWriteMany"]
  mount = ["--mount-point=/mnt/moe", "--readonly=false", "--auto-mount=true"]
  shell.run(_xpk(options, "storage", "create", f"{options.cluster}-moe", *disk, *mount))


def start(options: argparse.Namespace, shell: Shell) -> None:
  """Makes an image of this checkout and a workload of the training command.

  Raises:
    ConfigError: no such config, or a workdir that is not absolute. LaunchError: XPK refuses it.
  """
  require_shared(options.workdir)
  train = shlex.join(train_command(options))
  require("\n" not in train, "--config", train, "XPK takes no command of several lines")
  pack(shell)
  shell.run(["rm", "-rf", _SOURCE])
  shell.run(["mkdir", "-p", _SOURCE])
  shell.run(["tar", "-xzf", ARCHIVE, "-C", _SOURCE])
  # exec: XPK's shell passes SIGTERM on to its one child, which must be the training.
  command = f"pip install --quiet --editable '.[tpu]' && exec {train}"
  workload = [f"--workload={options.name}", f"--tpu-type={options.tpu_type}", "--num-slices=1"]
  image = [f"--base-docker-image={_IMAGE}", f"--script-dir={_SOURCE}"]
  # 1: a host has been lost to the others. 143, asked to stop, is among XPK's own; 2, a wrong command, is not.
  restart = [f"--max-restarts={options.restarts}", "--restart-on-exit-codes=1"]
  patience = ["--termination-grace-period-seconds=300"]
  shell.run(_xpk(options, "workload", "create", *workload, *image, *restart, *patience, f"--command={command}"))


def _capacity(options: argparse.Namespace) -> str:
  return "--spot" if options.spot else "--on-demand"


def _xpk(options: argparse.Namespace, group: str, verb: str, *arguments: str) -> list[str]:
  where = [f"--cluster={options.cluster}", f"--zone={options.zone}"]
  return ["xpk", group, verb, *arguments, *where] + ([f"--project={options.project}"] if options.project else [])


def launch(arguments: list[str] | None = None) -> None:
  options = parse(_parser(), arguments)
  shell = Shell(options.dry_run)
  match options.verb:
    case "create":
      create(options, shell)
    case "start":
      start(options, shell)
    case "log":
      # The first host's; kubectl knows the cluster from XPK.
      which = f"xpk.google.com/workload={options.name},batch.kubernetes.io/job-completion-index=0"
      shell.run(["kubectl", "logs", "--follow", "--tail=100", "--container=jax-tpu", f"--selector={which}"])
    case "stop":
      confirm(f"Stop the workload {options.name}? It saves first.", options.yes, shell)
      shell.run(_xpk(options, "workload", "delete", f"--workload={options.name}", "--force"))
    case "delete":
      confirm(f"Delete the cluster {options.cluster} and all that runs there? Its disk stays.", options.yes, shell)
      shell.run(_xpk(options, "cluster", "delete", "--force"))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("create", "start", "log", "stop", "delete"):
    its = verbs.add_parser(verb, allow_abbrev=False)
    its.add_argument("cluster")
    its.add_argument("--zone", required=True)
    its.add_argument("--project", help="gcloud's own by default")
    add_dry_run(its)
    if verb in ("create", "start"):
      its.add_argument("--tpu-type", required=True, help="v5litepod-16, v5p-16, v6e-16, ...")
    if verb in ("start", "log", "stop"):
      its.add_argument("--name", required=True, help="of the workload")
    if verb == "create":
      its.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    if verb == "start":
      add_train_options(its)
      its.add_argument("--restarts", type=int, default=50, help="preemptions and failures to get over")
    if verb in ("stop", "delete"):
      add_yes(its)
  return parser


if __name__ == "__main__":
  main(launch)
