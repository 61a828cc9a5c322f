import pytest

from moe.evaluation.scoring.hook import ScoreHook
from moe.training.trainer import train
from moe.training.workdir import Workdir
from tests.evaluation.scoring.tasks import BYTES, run_config, task


@pytest.fixture(scope="session")
def memorised(tmp_path_factory):
  """A run that has learnt its task by heart."""
  settings, folder = run_config(), tmp_path_factory.mktemp("memorised")
  train(settings, folder, score=ScoreHook(settings, BYTES, [task()]))
  return Workdir(folder)
