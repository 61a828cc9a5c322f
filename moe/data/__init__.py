"""Text to batches: sources, vocabularies, objectives, packing, and an input position that a checkpoint can hold."""

from moe.data.data_config import Architecture, DataConfig
from moe.data.errors import DataError
from moe.data.pipeline import Pipeline, make_pipeline
from moe.data.sources import make_source, make_vocabulary, validation_text
from moe.data.vocabulary import Vocabulary, load_vocabulary

__all__ = [
  "Architecture",
  "DataConfig",
  "DataError",
  "Pipeline",
  "Vocabulary",
  "load_vocabulary",
  "make_pipeline",
  "make_source",
  "make_vocabulary",
  "validation_text",
]
