"""TFDS data sets of pictures by name: `mnist`, `cifar10`, `imagenet2012`, and any other with `image` and `label`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe.config import require
from moe.data.images.classes import ClassVocabulary
from moe.data.source import Source, SourceConfig
from moe.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class ImageDatasetConfig(SourceConfig, name="image_dataset"):
  """A prepared TFDS data set.

  Attributes:
    dataset: its name, such as "cifar10" or "imagenet2012:5.1.0".
    data_dir: the TFDS directory; empty for TFDS's default.
    train_split: its name of the split "train", such as "train[:90%]".
    validation_split: its name of the split "validation": "test" for most, "validation" for ImageNet, whose test labels
      are hidden.
  """

  stores_vocabulary = True
  gives_pictures = True

  dataset: str
  data_dir: str = ""
  train_split: str = "train"
  validation_split: str = "test"

  def __post_init__(self):
    require(bool(self.dataset.strip()), "dataset", self.dataset, "expected the name of a TFDS data set of pictures")

  @property
  def corpus(self) -> str:
    return self.dataset

  def stored_vocabulary(self) -> ClassVocabulary:
    return ClassVocabulary(self._reader().classes(self))

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> Source:
    name = {"train": self.train_split, "validation": self.validation_split}.get(split, split)
    return self._reader().TfdsPictures(self, name)

  def _reader(self) -> Any:
    from moe.data.formats import tfds_pictures  # imports TensorFlow

    return tfds_pictures
