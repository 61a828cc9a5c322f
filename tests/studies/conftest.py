"""What tests of studies share."""

import pytest

from moe.studies.running import worker


@pytest.fixture
def here(monkeypatch):
  """Jobs are done in this process, which has compiled what they share."""

  def run_missing(folder, jobs, processes, commit):
    worker.work(str(folder.root), jobs, commit, None)

  monkeypatch.setattr("moe.studies.running.campaign.run_missing", run_missing)
