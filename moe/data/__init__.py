"""Text and pictures to batches: sources, vocabularies, objectives, packing, and positions that a checkpoint stores."""

from moe.data.batch import RowFormat
from moe.data.corpus import make_source, make_vocabulary, validation_text
from moe.data.data_config import DataConfig
from moe.data.errors import DataError
from moe.data.objective import ObjectiveConfig
from moe.data.pipeline import Pipeline, make_pipeline
from moe.data.source import SourceConfig
from moe.data.vocabulary import Vocabulary, load_vocabulary

__all__ = [
  "DataConfig",
  "DataError",
  "ObjectiveConfig",
  "Pipeline",
  "RowFormat",
  "SourceConfig",
  "Vocabulary",
  "load_vocabulary",
  "make_pipeline",
  "make_source",
  "make_vocabulary",
  "validation_text",
]
