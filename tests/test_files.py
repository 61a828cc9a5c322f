import os
import pathlib

import fsspec
import pytest

from moe.config import ConfigError
from moe.files import (
  in_bucket,
  local_path,
  open_path,
  read_bytes,
  size_of,
  write_new,
  write_numbered,
  write_whole,
)
from tests.bucket import Store


def test_a_path_is_absolute_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert local_path("--out", "~/runs/a") == local_path("--out", "runs/a") == tmp_path / "runs" / "a"
  assert local_path("--out", "runs/../a~b") == tmp_path / "a~b"


@pytest.mark.parametrize("given", ["", "  ", "gs://bucket/run", "s3://b", "file:///tmp/x", pathlib.Path("gs://b/r")])
def test_no_path_and_urls_are_refused(given):
  with pytest.raises(ConfigError, match=r"^--out = .*: expected a path"):
    local_path("--out", given)


def test_a_path_in_a_bucket_keeps_its_name(bucket):
  path = open_path("--out", "gs://bucket/runs//one/")
  assert str(path / "a") == "gs://bucket/runs/one/a" and in_bucket(path)
  assert open_path("--out", path) == path
  assert not in_bucket(open_path("--out", "runs/one"))


@pytest.mark.parametrize("given", ["gs://", "gs:///run", "gs://bucket/../run"])
def test_a_url_without_a_bucket_is_refused(bucket, given):
  with pytest.raises(ConfigError, match="expected gs://BUCKET/PATH"):
    open_path("--out", given)


def test_other_schemes_are_refused_and_a_missing_package_is_named(bucket, monkeypatch):
  with pytest.raises(ConfigError, match="expected a path; mount the bucket"):
    open_path("--out", "az://container/run")

  def missing(protocol):
    raise ImportError("Install s3fs to access S3")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(ConfigError, match=r"^--out = 's3://b/run': expected the package s3fs to be installed"):
    open_path("--out", "s3://b/run")


def test_an_unknown_home_folder_is_one_line():
  with pytest.raises(ConfigError, match="there is no such home folder"):
    local_path("--out", "~nobody-of-this-name/run")


def test_an_object_is_replaced_whole_and_a_new_one_replaces_none(bucket):
  path = open_path("--out", "gs://bucket/run/a.json")
  write_whole(path, "first")
  write_whole(path, "second, longer")
  assert read_bytes(path) == b"second, longer" and size_of(path) == 14
  assert read_bytes(path, 8, 3) == b"lon"
  with pytest.raises(FileExistsError):
    write_new(path, "third")
  assert str(write_numbered(path, "third")) == "gs://bucket/run/a-2.json"
  assert sorted(file.name for file in (bucket / "run").iterdir()) == ["a-2.json", "a.json"]
  assert (bucket / "run" / "a.json").read_text() == "second, longer"


def test_every_error_of_a_bucket_says_what_happened(bucket, monkeypatch):
  with pytest.raises(FileNotFoundError) as missing:
    read_bytes(open_path("--out", "gs://bucket/none"))
  assert missing.value.strerror == "no such object or bucket" and missing.value.filename == "gs://bucket/none"
  with pytest.raises(FileNotFoundError, match="no such object or bucket"):
    write_whole(open_path("--out", "gs://another/a"), "text")
  monkeypatch.setattr(Store, "read_only", True)
  with pytest.raises(OSError, match=r"does not have storage\.objects\.create access") as refused:
    write_whole(open_path("--out", "gs://bucket/a"), "text")
  assert refused.value.strerror


def without_hard_links(*unused, **also_unused):
  raise OSError(95, "Operation not supported")


def test_a_file_is_never_overwritten_also_without_hard_links(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "link", without_hard_links)
  write_new(tmp_path / "a", "first")
  with pytest.raises(FileExistsError):
    write_new(tmp_path / "a", "second")
  assert (tmp_path / "a").read_text() == "first"
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_what_was_there_and_no_new_name(tmp_path, monkeypatch):
  (tmp_path / "old").write_text("old")

  def full(path, content):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  with pytest.raises(OSError, match="No space left"):
    write_whole(tmp_path / "old", "new")
  with pytest.raises(OSError, match="No space left"):
    write_new(tmp_path / "new", "new")
  assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"
