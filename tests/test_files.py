import os
import pathlib

import pytest

from moe.config import ConfigError
from moe.files import local_path, write_new, write_whole


def test_a_path_is_absolute_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert local_path("--out", "~/runs/a") == local_path("--out", "runs/a") == tmp_path / "runs" / "a"
  assert local_path("--out", "runs/../a~b") == tmp_path / "a~b"


@pytest.mark.parametrize("given", ["", "  ", "gs://bucket/run", "s3://b", "file:///tmp/x", pathlib.Path("gs://b/r")])
def test_no_path_and_urls_are_refused(given):
  with pytest.raises(ConfigError, match=r"^--out = .*: expected a path"):
    local_path("--out", given)


def test_an_unknown_home_folder_is_one_line():
  with pytest.raises(ConfigError, match="there is no such home folder"):
    local_path("--out", "~nobody-of-this-name/run")


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
