"""Reading TFDS data sets of pictures. Imports TensorFlow: import it where it is needed."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from moe.config import ConfigError, first_line, require
from moe.data.documents import stable_hash
from moe.data.errors import DataError
from moe.data.formats.prepared import how_to_prepare
from moe.data.formats.seqio_reading import one_line, whole_split
from moe.data.images.pictures import BLOCK_BYTES, BLOCK_PICTURES, Pictures, check_size
from moe.data.quiet_import import quiet_import
from moe.data.source import require_split
from moe.data.sources.image_dataset import ImageDatasetConfig
from moe.row_format import PictureFormat

with quiet_import():
  import seqio
  import tensorflow as tf
  import tensorflow_datasets as tfds

_AT_ONCE = 256


def open_builder(config: ImageDatasetConfig) -> Any:
  """The prepared data set.

  Raises:
    ConfigError: it does not exist, is not prepared, or does not have pictures and labels.
  """
  tf.config.set_visible_devices([], "GPU")  # TensorFlow would otherwise reserve the accelerator's memory
  where, name = config.data_dir or "the default TFDS directory", config.dataset
  try:
    builder = tfds.builder(name, data_dir=os.path.expanduser(config.data_dir) or None)
  except Exception as error:  # TFDS raises a dozen kinds
    raise ConfigError("dataset", name, f"expected a TFDS data set in {where} ({first_line(error)})") from None
  wanted = f"expected a data set prepared in {where}; {how_to_prepare(name, config.data_dir)}"
  require(bool(builder.info.splits), "dataset", name, wanted)
  features = builder.info.features
  kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  fits = all(key in features and isinstance(features[key], kind) for key, kind in kinds.items())
  has = f"expected a data set with a picture `image` and a class `label`; it has {', '.join(features)}"
  require(fits, "dataset", name, has)
  return builder


def classes(config: ImageDatasetConfig) -> list[str]:
  """The names of a data set's classes."""
  return open_builder(config).info.features["label"].names


class TfdsPictures:
  """One split of a data set, in its own shards and order.

  Raises:
    ConfigError: as `open_builder`. DataError: it does not have the split, or cannot be read.
  """

  supervised = True
  varies = False
  skipped = 0

  def __init__(self, config: ImageDatasetConfig, split: str):
    builder = open_builder(config)
    require_split(whole_split(split), builder.info.splits, config.dataset)
    self._name, self._split = config.dataset, split
    self._shape = builder.info.features["image"].shape
    full_name = ":".join(builder.info.full_name.rsplit("/", 1))
    with one_line(config.dataset):
      number = builder.info.splits[split].num_examples
      if not number:
        raise DataError(f"split {split!r}", f"holds no picture of {config.dataset}")
      data_dir = os.path.expanduser(config.data_dir) or None
      decoders = {"image": tfds.decode.SkipDecoding()}
      self._source = seqio.TfdsDataSource(full_name, tfds_data_dir=data_dir, decoders=decoders, read_only=True)
      self.num_shards = len(self._source.list_shards(split))
    self.fingerprint = f"{stable_hash(full_name, split, number):016x}"

  def check_pictures(self, format: PictureFormat, *, any_size: bool) -> None:
    """Raises `DataError` unless the data set's pictures have the format's channels and, but for `any_size`, its size.

    Those of a data set that does not say are checked as they are decoded.
    """
    height, width, channels = self._shape
    if channels is not None and channels > format.channels:
      raise DataError(self._name, f"has {channels} channels: expected {format.channels}, config.model.channels")
    if height is not None and width is not None:
      check_size(height, width, self._name, format, any_size=any_size)

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Any]:
    del epoch
    info = seqio.ShardInfo(shard, self.num_shards) if self.num_shards > 1 else None
    where = f"{self._name}, split {self._split}, shard {shard}"
    with one_line(where):
      dataset = self._source.get_dataset(split=self._split, shuffle=False, shard_info=info)
      rows = dataset.map(lambda one: (one["image"], one["label"])).batch(_AT_ONCE).prefetch(2).as_numpy_iterator()
    number = 0
    for block, found in enumerate(_blocks(_one_by_one(rows, where))):
      if block >= start:
        yield _pictures(found, where, number)
      number += len(found)

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._name, "has pictures and no text")


def _one_by_one(rows: Iterator[Any], where: str) -> Iterator[tuple[bytes, int]]:
  while True:
    with one_line(where):  # not around a `yield`: a generator may end with the process, when no names are left
      some = next(rows, None)
    if some is None:
      return
    yield from zip(*some)


def _blocks(rows: Iterator[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
  """Bounded in pictures and in bytes."""
  while block := list(itertools.islice(rows, 1)):
    size = len(block[0][0])
    while len(block) < BLOCK_PICTURES and size < BLOCK_BYTES and (row := next(rows, None)) is not None:
      block.append(row)
      size += len(row[0])
    yield block


def _pictures(block: list[tuple[bytes, int]], where: str, first: int) -> Pictures:
  labels = np.array([label for _, label in block])
  return Pictures(lambda i: block[i][0], labels, lambda i: f"{where}, example {first + i}")
