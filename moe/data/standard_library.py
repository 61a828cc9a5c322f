"""The corpus that needs no download: the running Python's own sources and documentation.

About 12 MB. One file is one document; about a twentieth of the files is for validation, chosen by their names, so that
the split is the same on every machine with the same Python.
"""

import os
import sysconfig
from collections.abc import Iterator

from moe.config import require
from moe.data.documents import TextSource, held_out, stable_hash
from moe.data.errors import DataError
from moe.data.vocabulary import Vocabulary

_SUFFIXES = (".py", ".txt", ".rst")
# Third-party packages differ from machine to machine; tests and Python 2's grammar are not the library; the character
# sets of `encodings` are tables made by a program, a fifth of all bytes and nothing to read.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "encodings", "__pycache__"}
SPLITS = ("train", "validation")


class StandardLibrarySource(TextSource):
  """The files below `sysconfig.get_path("stdlib")`, as a single shard in the order of their names.

  Raises:
    ConfigError: an unknown split. DataError: a Python that is installed without its sources.
  """

  num_shards = 1

  def __init__(self, vocabulary: Vocabulary, split: str, validation_fraction: float):
    super().__init__(vocabulary)
    require(split in SPLITS, "split", split, f"the standard library has {', '.join(SPLITS)}")
    self._root = sysconfig.get_path("stdlib")
    chosen = split == "validation"
    self._names = [name for name in _names(self._root) if held_out(name, 0, validation_fraction) == chosen]
    if not self._names:
      raise DataError(self._root, f"holds no {split} files; this Python comes without its sources")
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
  """Paths below the root, with "/" on every system, sorted."""
  found = []
  for directory, subdirectories, files in os.walk(root):
    subdirectories[:] = [name for name in subdirectories if name not in _LEFT_OUT]
    paths = (os.path.join(directory, name) for name in files if name.endswith(_SUFFIXES))
    found += [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
  return sorted(found)
