import pytest

from tests.training.tiny import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """A file of JSON lines, the data of every tiny run."""
  return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.jsonl")
