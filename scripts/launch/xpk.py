r"""Trains on a Cloud TPU slice of a GKE cluster through XPK: creates cluster and disk, starts, follows, deletes.

  python -m scripts.launch.xpk create CLUSTER --zone ZONE --tpu-type v5litepod-16 --spot
  python -m scripts.launch.xpk start  CLUSTER --zone ZONE --tpu-type v5litepod-16 --name run1 \
    --config configs/quickstart.py --workdir /mnt/moe/run1
  python -m scripts.launch.xpk log    CLUSTER --zone ZONE --name run1
  python -m scripts.launch.xpk stop   CLUSTER --zone ZONE --name run1
  python -m scripts.launch.xpk delete CLUSTER --zone ZONE

`create` makes the cluster and a Filestore disk, mounted at /mnt/moe in every container. There is no `install`, as each
container installs this checkout when it starts, and no `resume`, as Kubernetes restarts a run that was preempted or has
failed. `pip install xpk`; XPK itself needs gcloud, kubectl and crane or docker. --dry-run prints the commands.
"""

import argparse
import shlex

from moe.commands import Parser, run_script
from moe.config import require
from scripts.launch.shared import (
  ARCHIVE,
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

_IMAGE = "python:3.11"
_SOURCE = "build/launch/source"  # XPK copies this folder into the image


def _create(options: argparse.Namespace, shell: Shell) -> None:
  """Creates the cluster, with nodes for one slice, and the disk for workdirs."""
  cluster = ["--enable-gcpfilestore-csi-driver", _capacity(options)]
  shell.run(_xpk(options, "cluster", "create", f"--tpu-type={options.tpu_type}", *cluster))
  disk = ["--type=gcpfilestore", "--vol=moe", "--size=1024", "--tier=BASIC_HDD", "--access-mode=ReadWriteMany"]
  mount = ["--mount-point=/mnt/moe", "--readonly=false", "--auto-mount=true"]
  shell.run(_xpk(options, "storage", "create", f"{options.cluster}-moe", *disk, *mount))


def _start(options: argparse.Namespace, shell: Shell) -> None:
  """Builds an image of this checkout and creates a workload of the training command.

  Raises:
    ConfigError: there is no such config, or the workdir is not absolute.
    LaunchError: XPK refuses the workload.
  """
  require_shared(options.workdir)
  train = shlex.join(train_command(options))
  require("\n" not in train, "--config", train, "expected no line breaks, which XPK does not accept")
  pack(shell)
  shell.run(["rm", "-rf", _SOURCE])
  shell.run(["mkdir", "-p", _SOURCE])
  shell.run(["tar", "-xzf", ARCHIVE, "-C", _SOURCE])
  # exec, because XPK's shell passes SIGTERM on to its only child, which must be the training.
  command = f"pip install --quiet --editable '.[tpu,gcs]' && exec {train}"
  workload = [f"--workload={options.name}", f"--tpu-type={options.tpu_type}", "--num-slices=1"]
  image = [f"--base-docker-image={_IMAGE}", f"--script-dir={_SOURCE}"]
  # 1: the other hosts have lost one. XPK itself adds 143, asked to stop, but not 2, a wrong command.
  restart = [f"--max-restarts={options.restarts}", "--restart-on-exit-codes=1"]
  grace = ["--termination-grace-period-seconds=300"]
  shell.run(_xpk(options, "workload", "create", *workload, *image, *restart, *grace, f"--command={command}"))


def _capacity(options: argparse.Namespace) -> str:
  return "--spot" if options.spot else "--on-demand"


def _xpk(options: argparse.Namespace, group: str, verb: str, *arguments: str) -> list[str]:
  where = [f"--cluster={options.cluster}", f"--zone={options.zone}"]
  return ["xpk", group, verb, *arguments, *where] + ([f"--project={options.project}"] if options.project else [])


def main(arguments: list[str] | None = None) -> None:
  options = parse_options(_parser(), arguments)
  shell = Shell(options.dry_run)
  match options.verb:
    case "create":
      _create(options, shell)
    case "start":
      _start(options, shell)
    case "log":
      # The log of the first host; kubectl knows the cluster from XPK.
      which = f"xpk.google.com/workload={options.name},batch.kubernetes.io/job-completion-index=0"
      shell.run(["kubectl", "logs", "--follow", "--tail=100", "--container=jax-tpu", f"--selector={which}"])
    case "stop":
      confirm(f"Stop the workload {options.name}? It saves first.", options.yes, shell)
      shell.run(_xpk(options, "workload", "delete", f"--workload={options.name}", "--force"))
    case "delete":
      confirm(
        f"Delete the cluster {options.cluster} and everything that runs there? Its disk is kept.", options.yes, shell
      )
      shell.run(_xpk(options, "cluster", "delete", "--force"))


def _parser() -> argparse.ArgumentParser:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  verbs = parser.add_subparsers(dest="verb", required=True)
  for verb in ("create", "start", "log", "stop", "delete"):
    its = verbs.add_parser(verb)
    its.add_argument("cluster")
    its.add_argument("--zone", required=True)
    its.add_argument("--project", help="by default that of gcloud")
    add_dry_run(its)
    if verb in ("create", "start"):
      its.add_argument("--tpu-type", required=True, help="v5litepod-16, v5p-16, v6e-16, ...")
    if verb in ("start", "log", "stop"):
      its.add_argument("--name", required=True, help="of the workload")
    if verb == "create":
      its.add_argument("--spot", action="store_true", help="cheaper, but may be preempted at any time")
    if verb == "start":
      add_train_options(its)
      its.add_argument("--restarts", type=int, default=50, help="preemptions and failures to recover from")
    if verb in ("stop", "delete"):
      add_yes(its)
  return parser


if __name__ == "__main__":
  run_script(main)
