"""Your own pictures: a folder for each class, `PATH/CLASS/FILE`."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from moe.config import require
from moe.data.documents import held_out, stable_hash
from moe.data.errors import DataError
from moe.data.images.classes import ClassVocabulary
from moe.data.images.pictures import BLOCK_PICTURES, Pictures, check_header, open_picture
from moe.data.source import SPLITS, SourceConfig, require_split
from moe.data.vocabulary import Vocabulary
from moe.row_format import PictureFormat


@dataclasses.dataclass(frozen=True)
class ImageFolderConfig(SourceConfig, name="image_folder"):
  """Class folders of PNG, JPEG or other files that Pillow reads. Labels are the places of the sorted class names.

  Attributes:
    path: the folder that holds those of the classes; names that begin with a dot are ignored.
    validation_path: the same for validation; if empty, a fraction of every class of `path` is held out.
    validation_fraction: of the pictures.
  """

  stores_vocabulary = True
  gives_pictures = True

  path: str
  validation_path: str = ""
  validation_fraction: float = 0.05

  def __post_init__(self):
    require(bool(self.path.strip()), "path", self.path, "expected a folder of class folders")
    fraction = self.validation_fraction
    require(0 < fraction < 1, "validation_fraction", fraction, "expected between 0 and 1")

  @property
  def corpus(self) -> str:
    return self.path

  def stored_vocabulary(self) -> ClassVocabulary:
    return ClassVocabulary(_classes("path", self.path))

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> "FolderSource":
    return FolderSource(self, split)


class FolderSource:
  """One split of a folder: a single shard, whose order is that of a hash of the files' names, so that classes mix.

  Raises:
    ConfigError: the folder does not exist or holds no class. DataError: the split holds no picture; or the validation
      folder has a class that the other has not.
  """

  num_shards = 1
  supervised = True
  varies = False
  skipped = 0

  def __init__(self, config: ImageFolderConfig, split: str):
    require_split(split, SPLITS, config.path)
    own = split == "validation" and bool(config.validation_path)
    field = "validation_path" if own else "path"
    self._root = os.path.expanduser(getattr(config, field))
    labels = {name: label for label, name in enumerate(_classes("path", config.path))}
    found: list[tuple[str, int]] = []
    for name in _classes(field, getattr(config, field)):
      if name not in labels:
        known = ", ".join(list(labels)[:5]) + ", ..." * (len(labels) > 5)
        raise DataError(os.path.join(self._root, name), f"is no class of {config.path}: expected one of {known}")
      files = _visible(os.path.join(self._root, name))
      if not config.validation_path:
        chosen = split == "validation"
        held = (held_out(name, number, config.validation_fraction) for number in range(len(files)))
        files = [file for file, is_held in zip(files, held) if is_held == chosen]
      found += [(f"{name}/{file}", labels[name]) for file in files]
    if not found:
      raise DataError(f"split {split!r}", f"holds no picture: expected files in the class folders of {self._root}")
    found.sort(key=lambda one: stable_hash(one[0]))
    self._files = [file for file, _ in found]
    self._labels = np.array([label for _, label in found], np.int32)
    sizes = (os.path.getsize(self._path(i)) for i in range(len(found)))
    self.fingerprint = f"{stable_hash(split, *zip(found, sizes)):016x}"

  def check_pictures(self, format: PictureFormat, *, any_size: bool) -> None:
    """Reads the header of every file. Raises `DataError` for the first that is not as `check_header` says."""

    def check(i: int) -> None:
      path = self._path(i)
      with open_picture(path, path) as picture:
        check_header(picture, path, format, any_size=any_size)

    with ThreadPoolExecutor() as pool:
      for _ in pool.map(check, range(len(self._files))):
        pass

  def blocks(self, shard: int, start: int, epoch: int) -> Iterator[Any]:
    del shard, epoch
    for first in range(start * BLOCK_PICTURES, len(self._files), BLOCK_PICTURES):
      labels = self._labels[first : first + BLOCK_PICTURES]
      yield Pictures(functools.partial(self._read, first), labels, functools.partial(self._name, first))

  def texts(self, shard: int) -> Iterator[str]:
    raise DataError(self._root, "holds pictures and no text")

  def _path(self, i: int) -> str:
    return os.path.join(self._root, *self._files[i].split("/"))

  def _name(self, first: int, i: int) -> str:
    return self._path(first + i)

  def _read(self, first: int, i: int) -> bytes:
    path = self._path(first + i)
    try:
      with open(path, "rb") as file:
        return file.read()
    except OSError as error:
      raise DataError(path, f"cannot be read ({error.strerror})") from None


def _classes(field: str, path: str) -> list[str]:
  """The names of the class folders, sorted.

  Raises:
    ConfigError: there is none.
  """
  root = os.path.expanduser(path)
  require(os.path.isdir(root), field, path, "expected a folder of class folders")
  names = [name for name in _visible(root) if os.path.isdir(os.path.join(root, name))]
  require(bool(names), field, path, "expected a folder for each class in it, with pictures")
  return names


def _visible(folder: str) -> list[str]:
  return sorted(name for name in os.listdir(folder) if not name.startswith("."))
