"""One host of a run that scores its task: `python -m tests.evaluation.scoring.hosts WORKDIR HOST HOSTS PORT`."""

import sys

import jax

from moe.evaluation.scoring.hook import ScoreHook
from moe.training.trainer import train
from tests.evaluation.scoring.tasks import BYTES, run_config, task

STEPS = {"steps": 4, "log_every": 4, "eval_every": 2, "checkpoint_every": 4}


def main(workdir: str, host: str, hosts: str, port: str) -> None:
  if int(hosts) > 1:
    jax.distributed.initialize(f"localhost:{port}", int(hosts), int(host))
  settings = run_config(STEPS, batch_size=4)
  train(settings, workdir, score=ScoreHook(settings, BYTES, [task()]))


if __name__ == "__main__":
  main(*sys.argv[1:])
