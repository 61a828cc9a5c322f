"""Trains a model: `python -m moe.train --config configs/quickstart.py --workdir runs/quickstart`.

Every field of the config can be overridden: `--config.train.steps=100`. The same command resumes a run that was
stopped. SIGTERM and Ctrl-C save a checkpoint and end the run with exit code 143.
"""

import signal
import sys

from absl import flags

from moe import commands
from moe.parallel.host_memory import keep_freed_memory

commands.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, figure.", required=True)
_JOIN = commands.define_hosts()


def main() -> None:
  _JOIN()
  import jax

  from moe.parallel.platform import default_platform

  if default_platform() == "cpu":
    keep_freed_memory()

  from moe.evaluation.scoring.hook import make_score_hook
  from moe.evaluation.summary import summarize
  from moe.training.experiment import load_config
  from moe.training.init import inherit
  from moe.training.trainer import train

  config = load_config(inherit(commands.given_config(), _WORKDIR.value))
  summary = train(config, _WORKDIR.value, score=make_score_hook(config, _WORKDIR.value))
  if not summary.finished:
    sys.exit(128 + signal.SIGTERM)  # 0 would tell a cluster that the run is finished
  if jax.process_index() == 0:
    summarize(config, summary)


if __name__ == "__main__":
  commands.run(main)
