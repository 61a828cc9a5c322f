"""A bucket that is a folder of this machine, and refuses what object stores refuse.

Objects appear when their writing ends, and cannot be appended to. There are no folders: making one does nothing, and a
name without an object behind it does not exist. Moving is copying, object by object. Orbax writes its arrays through
TensorStore, which is led to the same folder.
"""

import importlib
import io
import pathlib
import shutil

import fsspec
import pytest
from etils.epath import backend, gpath

import moe.files


class Upload(io.BytesIO):
  """An object that is being written."""

  def __init__(self, file: pathlib.Path):
    super().__init__()
    self._file = file

  def close(self) -> None:
    if not self.closed:
      self._file.parent.mkdir(parents=True, exist_ok=True)
      self._file.write_bytes(self.getvalue())
    super().close()


class Store(fsspec.AbstractFileSystem):
  """All buckets: the folders in `root`, one for each."""

  protocol = ("gs", "gcs", "s3")
  cachable = False
  root: pathlib.Path
  read_only = False
  reads: list[tuple[str, int, int]]  # name, offset and length of each part that was read

  def _file(self, path: str) -> pathlib.Path:
    return self.root / self._strip_protocol(path)

  def info(self, path, **unused):
    name, file = self._strip_protocol(path), self._file(path)
    if file.is_file():
      return {"name": name, "size": file.stat().st_size, "type": "file"}
    if file.is_dir() and any(inner.is_file() for inner in file.rglob("*")):
      return {"name": name, "size": 0, "type": "directory"}
    raise FileNotFoundError(name)

  def ls(self, path, detail=True, **unused):
    name, file = self._strip_protocol(path), self._file(path)
    own = self.info(path)
    found = [own] if own["type"] == "file" else []
    for inner in sorted(file.iterdir()) if not found else []:
      if inner.is_file() or any(each.is_file() for each in inner.rglob("*")):
        found.append(self.info(f"{name}/{inner.name}"))
    return found if detail else [each["name"] for each in found]

  def _open(self, path, mode="rb", **unused):
    file = self._file(path)
    if mode == "rb":
      self.info(path)
      return Download(file, self.reads)
    if mode != "wb":
      raise NotImplementedError(f"mode {mode}: an object cannot be appended to")
    if not (self.root / self._strip_protocol(path).split("/")[0]).is_dir():
      raise FileNotFoundError("the specified bucket does not exist")
    if self.read_only:
      raise PermissionError("account does not have storage.objects.create access")
    return Upload(file)

  def cp_file(self, path1, path2, **unused):
    if self._file(path1).is_file():
      self._file(path2).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(self._file(path1), self._file(path2))

  def _rm(self, path):
    file = self._file(path)
    if file.is_file():
      file.unlink()
    while not file.exists() or (file.is_dir() and file.parent != self.root and not any(file.iterdir())):
      if file.is_dir():
        file.rmdir()
      file = file.parent

  def mkdir(self, path, create_parents=True, **unused):
    pass

  def makedirs(self, path, exist_ok=False):
    pass

  def rmdir(self, path):
    self._rm(path)


class Download(io.FileIO):
  """An object that is being read."""

  def __init__(self, file: pathlib.Path, reads: list[tuple[str, int, int]]):
    super().__init__(file)
    self._reads = reads

  def read(self, size=-1):
    start, content = self.tell(), super().read(size)
    self._reads.append((pathlib.Path(self.name).name, start, len(content)))
    return content


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The folder behind `gs://bucket` and `s3://bucket`."""
  from orbax.checkpoint._src.path import gcs_utils

  root = tmp_path / "buckets"
  (root / "bucket").mkdir(parents=True)
  for name, value in (("root", root), ("read_only", False), ("reads", [])):
    monkeypatch.setattr(Store, name, value, raising=False)
  known = importlib.import_module("fsspec.registry")._registry
  for protocol in Store.protocol:
    monkeypatch.setitem(known, protocol, Store)
  # TensorStore's arrays, whose driver is its own, and what Orbax asks Google's client about a bucket.
  monkeypatch.setattr(
    gcs_utils, "get_kvstore_for_gcs", lambda path: {"driver": "file", "path": path.replace("gs:/", str(root), 1)}
  )
  monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
  monkeypatch.setenv("EPATH_USE_TF", "false")
  caches = (gpath._is_tf_installed, backend.fsspec_backend._get_filesystem, moe.files._prepare)
  for cache in caches:
    cache.cache_clear()
  yield root / "bucket"
  for cache in caches:
    cache.cache_clear()
