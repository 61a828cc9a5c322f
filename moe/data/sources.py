"""The source and the vocabulary that a config names, each imported only when asked for."""

from moe.config import require
from moe.data.data_config import DataConfig
from moe.data.documents import Source
from moe.data.vocabulary import Vocabulary, load_vocabulary


def make_vocabulary(config: DataConfig) -> Vocabulary:
  """The config's vocabulary; a token directory's is its own.

  Raises:
    ConfigError: a missing or unusable vocabulary, or another one than the tokens were made with.
  """
  if config.source != "tokens":
    return load_vocabulary(config.vocabulary, config.extra_ids)
  from moe.data.tokens import stored_vocabulary

  stored = stored_vocabulary(config.path)
  if config.vocabulary:
    named = load_vocabulary(config.vocabulary, stored.extra_ids)
    same = named.fingerprint == stored.fingerprint
    require(same, "vocabulary", config.vocabulary, f"is not the one that {config.path} was made with; leave it empty")
  return stored


def make_source(config: DataConfig, split: str, vocabulary: Vocabulary) -> Source:
  """One split's documents.

  Raises:
    ConfigError, DataError: as the source's own class.
  """
  if config.source == "standard_library":
    from moe.data.standard_library import StandardLibrarySource

    return StandardLibrarySource(vocabulary, split, config.validation_fraction)
  if config.source == "text":
    from moe.data.text import FilesSource

    return FilesSource(vocabulary, config, split)
  if config.source == "tokens":
    from moe.data.tokens import TokensSource

    return TokensSource(config.path, split)
  from moe.data.task import make_task_source

  return make_task_source(config, split, vocabulary)


def validation_text(config: DataConfig, limit: int = 2**25) -> bytes:
  """The validation documents as text, for comparison with a general compressor: at most about `limit` bytes.

  Raises:
    DataError: the source has no text, only ids.
  """
  source = make_source(config, "validation", make_vocabulary(config))
  parts, size = [], 0
  for shard in range(source.num_shards):
    for text in source.texts(shard):
      parts.append(text.encode())
      size += len(parts[-1])
      if size >= limit:
        return b"".join(parts)
  return b"".join(parts)
