import jax
import pytest

from tests.training.tiny import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """A file of JSON lines, the data of every tiny run."""
  return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.jsonl")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
  """A cache of compiled programs for this session alone, so that tests neither use nor fill the user's."""
  folder = str(tmp_path_factory.mktemp("compiled"))
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", folder)
  yield folder
  jax.config.update("jax_compilation_cache_dir", before)
