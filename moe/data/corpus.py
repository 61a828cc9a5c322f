"""What a data config reads: its vocabulary, its documents, its validation text."""

from moe.config import in_section, require
from moe.data.data_config import DataConfig
from moe.data.source import Source
from moe.data.vocabulary import Vocabulary, load_vocabulary


def make_vocabulary(config: DataConfig) -> Vocabulary:
  """The config's vocabulary, or the one that its source stores.

  Raises:
    ConfigError: the vocabulary is missing or unusable, or differs from the one that the source stores.
    DataError: the source is damaged.
  """
  with in_section("config.data.source"):
    stored = config.source.stored_vocabulary()
  with in_section("config.data"):
    if stored is None:
      return load_vocabulary(config.vocabulary, config.extra_ids)
    if config.vocabulary:
      named = load_vocabulary(config.vocabulary, stored.extra_ids)
      expected = f"expected the vocabulary that {config.source.corpus} was made with, or '' to use it"
      require(named.fingerprint == stored.fingerprint, "vocabulary", config.vocabulary, expected)
  return stored


def make_source(config: DataConfig, split: str, vocabulary: Vocabulary) -> Source:
  """The documents of one split.

  Raises:
    ConfigError, DataError: as `SourceConfig.make`.
  """
  with in_section("config.data.source"):
    return config.source.make(split, vocabulary, config.lengths, config.seed)


def validation_text(config: DataConfig, limit: int = 2**25) -> bytes:
  """The validation documents as text, about `limit` bytes at most, to compare with a general-purpose compressor.

  Raises:
    DataError: the source has only token ids.
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
