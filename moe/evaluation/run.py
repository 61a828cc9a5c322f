"""A run from the tree of its config: what it hands down from another run, its scores, its training."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moe.evaluation.scoring.hook import make_score_hook
from moe.parallel.platform import start_platform
from moe.training.experiment import ExperimentConfig, load_config
from moe.training.init import inherit
from moe.training.trainer import Summary, train


def run_config(tree: ConfigDict | Mapping[str, Any], folder: str | pathlib.Path) -> tuple[ExperimentConfig, Summary]:
  """Trains, or resumes, the run of a config in a workdir: its config, complete, and how it ended.

  Raises:
    UserError: as `inherit`, `make_score_hook` and `train`.
  """
  start_platform()
  config = load_config(inherit(tree, folder))
  return config, train(config, folder, score=make_score_hook(config, folder))
