"""One host of a run over several, each a process with its own devices: `python -m tests.training.hosts ...`."""

import json
import pathlib
import sys

import jax

from moe.training.experiment import load_config
from moe.training.init import inherit
from moe.training.trainer import train
from tests.training.tiny import tiny_mapping


def main(corpus: str, workdir: str, steps: str, mesh: str, host: str, hosts: str, port: str, source: str) -> None:
  if int(hosts) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(hosts), int(host))
  config = tiny_mapping(pathlib.Path(corpus), steps=int(steps), eval_batches=0)
  config["model"]["vocab_size"] = 260
  config["model"]["encoder"]["moe"]["num_experts"] = 8
  config["data"]["batch_size"], config["mesh"] = 8, json.loads(mesh)
  if source:
    config["init"] = {"workdir": source}
  train(load_config(inherit(config, workdir)), workdir)


if __name__ == "__main__":
  main(*sys.argv[1:])
