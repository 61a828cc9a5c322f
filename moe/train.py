"""Trains a model: `python -m moe.train --config configs/quickstart.py --workdir runs/quickstart`.

Every field of the config can be overridden: `--config.train.steps=100`. The same command resumes a run that was
stopped. SIGTERM and Ctrl-C save a checkpoint and end the run with exit code 143.
"""

import signal
import sys

from absl import flags

from moe import commands

commands.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, figure.", required=True)
_JOIN = commands.define_hosts()


def main() -> None:
  _JOIN()
  import jax

  from moe.evaluation.run import run_config
  from moe.evaluation.summary import summarize

  config, summary = run_config(commands.given_config(), _WORKDIR.value)
  if not summary.finished:
    sys.exit(128 + signal.SIGTERM)  # 0 would tell a cluster that the run is finished
  if jax.process_index() == 0:
    summarize(config, summary)


if __name__ == "__main__":
  commands.run(main)
