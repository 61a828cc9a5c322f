"""A corpus that needs no download: the sources and documentation of the running Python, about 12 MB.

One file is one document. About a twentieth of the files is for validation, chosen by name, so that the split is the
same on every machine with the same Python.
"""

import dataclasses
import os
import sysconfig
from collections.abc import Iterator, Mapping

from moe.config import require
from moe.data.documents import held_out, stable_hash
from moe.data.errors import DataError
from moe.data.source import SPLITS, SourceConfig, TextSource, require_split
from moe.data.vocabulary import Vocabulary

_SUFFIXES = (".py", ".txt", ".rst")
# Third-party packages differ from machine to machine; tests and Python 2's grammar are not the library; the character
# sets in `encodings` are generated tables, a fifth of all bytes and nothing to read.
_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class StandardLibraryConfig(SourceConfig, name="standard_library"):
  """The standard library.

  Attributes:
    validation_fraction: of the files.
  """

  validation_fraction: float = 0.05

  def __post_init__(self):
    fraction = self.validation_fraction
    require(0 < fraction < 1, "validation_fraction", fraction, "expected between 0 and 1")

  def make(self, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int], seed: int) -> "StandardLibrarySource":
    return StandardLibrarySource(vocabulary, split, self.validation_fraction)


class StandardLibrarySource(TextSource):
  """The files below `sysconfig.get_path("stdlib")`, a single shard sorted by name.

  Raises:
    DataError: an unknown split, or this Python is installed without its sources.
  """

  num_shards = 1

  def __init__(self, vocabulary: Vocabulary, split: str, validation_fraction: float):
    super().__init__(vocabulary)
    require_split(split, SPLITS, "the standard library")
    self._root = sysconfig.get_path("stdlib")
    chosen = split == "validation"
    self._names = [name for name in _names(self._root) if held_out(name, 0, validation_fraction) == chosen]
    if not self._names:
      raise DataError(self._root, f"contains no {split} files, since this Python is installed without its sources")
    sizes = (os.path.getsize(os.path.join(self._root, name)) for name in self._names)
    self.fingerprint = f"{stable_hash(*zip(self._names, sizes)):016x}"

  def texts(self, shard: int) -> Iterator[str]:
    del shard
    for name in self._names:
      with open(os.path.join(self._root, name), "rb") as file:
        content = file.read()
      try:
        yield content.decode()
      except UnicodeDecodeError:
        continue  # a few files of the library test other encodings


def _names(root: str) -> list[str]:
  """Paths below the root, sorted, with "/" on every system."""
  found = []
  for directory, subdirectories, files in os.walk(root):
    subdirectories[:] = [name for name in subdirectories if name not in _EXCLUDED]
    paths = (os.path.join(directory, name) for name in files if name.endswith(_SUFFIXES))
    found += [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
  return sorted(found)
