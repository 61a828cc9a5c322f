"""One host of a run over several, each a process with its own devices: `python -m tests.training.hosts ...`."""

import pathlib
import sys

import jax

from moe.training.loop import train
from tests.training.tiny import tiny_config


def main(corpus: str, workdir: str, steps: str, host: str, hosts: str, port: str) -> None:
  if int(hosts) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(hosts), int(host))
  train(tiny_config(pathlib.Path(corpus), streams=2, steps=int(steps), eval_batches=0), workdir)


if __name__ == "__main__":
  main(*sys.argv[1:])
