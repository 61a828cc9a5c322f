"""Your own files: every document once, in the right split, or one line that names the bad file."""

import bz2
import gzip
import json
import lzma
import os
import re

import pytest

from moe.config import ConfigError
from moe.data import DataError, make_pipeline, make_source, make_vocabulary, validation_text
from moe.data.sources import text
from moe.data.sources.text import TextConfig
from tests.data.conftest import make_config, make_texts, write_json_lines


def read(split: str = "train", **fields) -> list[str]:
  config = make_config(TextConfig(**fields))
  source = make_source(config, split, make_vocabulary(config))
  return [document for shard in range(source.num_shards) for document in source.texts(shard)]


def test_every_document_is_in_exactly_one_split(corpus):
  train, validation = (read(split, path=corpus) for split in ("train", "validation"))
  assert sorted(train + validation) == sorted(text for number in range(3) for text in make_texts(12, number))
  assert validation


def test_the_held_out_fraction_is_the_configs(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", ({"text": str(i)} for i in range(1000)))
  path = str(tmp_path / "*.jsonl")
  assert len(read("validation", path=path, validation_fraction=0.1)) == 100
  for number in range(400):
    (tmp_path / f"{number}.txt").write_text(f"file {number}")
  files = read("validation", path=str(tmp_path / "*.txt"), validation_fraction=0.1)
  assert 20 <= len(files) <= 60


def test_the_split_does_not_depend_on_where_the_corpus_is(tmp_path):
  validation = []
  for parent in ("here", "there/deeper"):
    folder = tmp_path / parent
    (folder / "a").mkdir(parents=True)
    for number in range(60):
      (folder / "a" / f"{number}.txt").write_text(f"file {number}")
    validation.append(read("validation", path=str(folder / "**" / "*.txt")))
  assert validation[0] == validation[1] != []


def test_documents_that_name_their_split_keep_to_it(tmp_path):
  records = [{"text": str(i), "split": ("train", "validation", "test")[i % 3]} for i in range(30)]
  write_json_lines(tmp_path / "a.jsonl", records)
  for number, split in enumerate(("train", "validation", "test")):
    assert read(split, path=str(tmp_path / "a.jsonl")) == [str(i) for i in range(number, 30, 3)]


def test_validation_files_are_read_whole_and_leave_training_whole(corpus, tmp_path):
  (tmp_path / "validation.txt").write_text("held out")
  where = {"path": corpus, "validation_path": str(tmp_path / "validation.txt")}
  assert read("validation", **where) == ["held out"]
  assert len(read("train", **where)) == 36


def test_validation_files_that_path_matches_too_are_not_trained_on(tmp_path):
  for name in ("a", "b", "held"):
    (tmp_path / f"{name}.txt").write_text(f"text of {name}")
  where = {"path": str(tmp_path / "*.txt"), "validation_path": str(tmp_path / "held.txt")}
  assert read("train", **where) == ["text of a", "text of b"] and read("validation", **where) == ["text of held"]
  assert len(read("train", **where | {"validation_path": where["path"]})) == 3  # which is meant


@pytest.mark.parametrize(
  ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_compressed_files_give_the_same_documents(tmp_path, suffix, compress):
  texts = make_texts(10)
  lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
  (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(lines.encode()))
  (tmp_path / f"b.txt{suffix}").write_bytes(compress(texts[0].encode()))
  one, other = (str(tmp_path / f"{name}{suffix}") for name in ("a.jsonl", "b.txt"))
  assert read("train", path=one, validation_path=other, text_key="body") == texts
  assert read("train", path=other, validation_path=one, text_key="body") == [texts[0]]


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_a_large_file_is_cut_without_losing_a_character(tmp_path, separator):
  content = separator.join(["é→ word " * 5] * 8000)
  assert len(content.encode()) > text.WHOLE_FILE
  (tmp_path / "a.txt").write_bytes(content.encode())
  (tmp_path / "b.txt").write_text("held out")
  where = {"path": str(tmp_path / "a.txt"), "validation_path": str(tmp_path / "b.txt")}
  pieces = read(**where)
  assert "".join(pieces) == content
  assert len(pieces) > 4
  assert max(len(piece.encode()) for piece in pieces) <= 2 * text.PIECE
  if "\n" in separator:
    assert all(piece.endswith(separator) for piece in pieces[:-1])


def test_a_single_large_file_has_both_splits(tmp_path):
  (tmp_path / "a.txt").write_text("word\n\n" * 200_000)
  assert read("train", path=str(tmp_path / "a.txt"))
  assert read("validation", path=str(tmp_path / "a.txt"))


def test_validation_text_is_the_validation_documents(corpus):
  config = make_config(TextConfig(corpus, validation_fraction=0.3))
  assert validation_text(config) == "".join(read("validation", path=corpus, validation_fraction=0.3)).encode()
  assert len(validation_text(config, limit=1)) < len(validation_text(config))


def test_a_glob_that_matches_nothing_is_rejected(tmp_path):
  with pytest.raises(ConfigError, match=r"^config\.data\.source\.path = '.*nothing.*': expected to match at least"):
    read(path=str(tmp_path / "nothing*.txt"))


@pytest.mark.parametrize(
  ("name", "content", "problem"),
  [
    ("empty.txt", b"", "is empty"),
    ("blank.txt", b"\xef\xbb\xbf \n", "is empty"),
    ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
    ("picture.txt", b"\x89PNG\0\0", r"is a binary file \(NUL at byte 4\)"),
    ("latin1.txt", "abcé".encode("latin1"), r"is not UTF-8 \(byte 3\)"),
    ("cut.txt.gz", gzip.compress(bytes(range(32, 120)) * 100, mtime=0)[:-20], "is damaged"),
    ("no_gzip.txt.gz", b"plain text", "is damaged"),
    ("no_xz.txt.xz", b"plain text", "is damaged"),
    ("utf16.txt", "text".encode("utf-16"), r"is a binary file|is not UTF-8"),
    ("table.csv", b"text,label\nx,1\n", "is not text: expected plain text or JSON lines"),
    ("table.TSV.gz", gzip.compress(b"x\t1\n", mtime=0), "is not text: expected"),
    ("table.parquet", b"PAR1", "is not text: expected"),
    ("archive.zip", b"PK", "is not text: expected"),
    ("archive.tar.gz", gzip.compress(b"x", mtime=0), "is not text: expected"),
  ],
)
def test_a_bad_file_is_named_before_anything_is_read(tmp_path, name, content, problem):
  (tmp_path / name).write_bytes(content)
  (tmp_path / "good.txt").write_text("good")
  with pytest.raises(DataError, match=f"{name}: {problem}") as error:
    read(path=str(tmp_path / "*"))
  assert "\n" not in str(error.value)


def test_a_file_that_turns_bad_late_is_named_with_the_byte(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"x" * 300_000 + b"\xff")
  with pytest.raises(DataError, match=r"a\.txt: is not UTF-8 \(byte 300000\)"):
    read(path=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(("suffix", "needed"), [("zst", "pip install zstandard"), ("xz", "a Python with lzma")])
def test_a_compression_that_cannot_be_read_here_says_what_it_needs(tmp_path, monkeypatch, suffix, needed):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr("moe.data.formats.text_files.importlib.import_module", missing)
  (tmp_path / f"a.txt.{suffix}").write_bytes(b"x")
  with pytest.raises(DataError, match=re.escape(f"reading .{suffix} needs") + ".*" + re.escape(needed)):
    read(path=str(tmp_path / f"a.txt.{suffix}"))


def test_a_name_that_exists_is_no_pattern(tmp_path):
  for folder in ("[v1] corpus", "v"):
    (tmp_path / folder / "a?").mkdir(parents=True)
    (tmp_path / folder / "a?" / "b*.txt").write_text(f"text of {folder}\n" * 40)
    (tmp_path / folder / "a?" / "b2.txt").write_text("another")
  one, all_ = (read(path=str(tmp_path / "[v1] corpus" / "a?" / name)) for name in ("b*.txt", "*.txt"))
  assert "".join(one).startswith("text of [v1] corpus") and len(one) == 1
  assert len(all_) == 2


def test_a_files_name_need_not_be_utf8(tmp_path):
  path = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9.txt"))
  with open(path, "w") as file:
    file.write("one line\n" * 40)
  assert "".join(read(path=path) + read("validation", path=path)) == "one line\n" * 40


def test_a_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "a.txt").write_text("one line\n" * 40)
  assert read(path="~/a.txt") == read(path=str(tmp_path / "a.txt"))


def test_a_pipe_is_rejected_since_epochs_read_again(tmp_path):
  os.mkfifo(tmp_path / "pipe.txt")
  with pytest.raises(ConfigError, match=r"pipe\.txt': expected a file on a disk, which can be read again"):
    read(path=str(tmp_path / "pipe.txt"))


@pytest.mark.parametrize("path", ["{folder}", "{folder}/", ".", "./", ".."])
def test_a_folder_is_rejected_with_the_pattern_of_its_files(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=r"expected files, and this is a folder; .*/\*\* matches all files in it"):
    read(path=path.format(folder=tmp_path))


@pytest.mark.parametrize("kilobytes", [1, 200, 300])
def test_the_end_of_a_single_plain_file_is_held_out(tmp_path, kilobytes):
  lines = [f"line {number} of a play\n" for number in range(kilobytes * 48)]
  (tmp_path / "input.txt").write_text("".join(lines))
  train, validation = (read(split, path=str(tmp_path / "input.txt")) for split in ("train", "validation"))
  assert sorted("".join(train + validation).splitlines(True)) == sorted(lines)
  if kilobytes < 256:
    assert train + validation == ["".join(train), "".join(validation)]
  share = len("".join(validation)) / len("".join(lines))
  assert 0.05 <= share <= 0.1 or (kilobytes > 256 and share < 0.2)


def test_few_documents_of_any_kind_have_their_ends_held_out(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "0123456789" * 4}, {"text": ""}])
  where = {"path": str(tmp_path / "a.jsonl"), "validation_fraction": 0.1}
  assert read("train", **where) == [("0123456789" * 4)[:36]]
  assert read("validation", **where) == ["6789"]


def test_documents_that_all_name_one_split_are_not_divided(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "all of it", "split": "train"}])
  assert read("train", path=str(tmp_path / "a.jsonl")) == ["all of it"]
  assert read("validation", path=str(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption", "causal_lm"])
def test_one_short_file_has_validation_examples_for_every_objective(tmp_path, objective):
  (tmp_path / "a.txt").write_text("one short line and another\n" * 4)
  lengths = {"inputs_length": 0} if objective == "causal_lm" else {}
  config = make_config(TextConfig(str(tmp_path / "a.txt")), objective=objective, **lengths)
  row_format = "targets" if objective == "causal_lm" else "inputs_and_targets"
  with make_pipeline(config, row_format, "validation", training=False) as pipeline:
    assert next(pipeline)["loss_weights"].sum() > 0


def test_only_documents_that_name_another_split_are_in_it(tmp_path):
  write_json_lines(tmp_path / "a.jsonl", [{"text": "a", "split": "test"}, *({"text": str(i)} for i in range(60))])
  assert read("test", path=str(tmp_path / "a.jsonl")) == ["a"]
  with pytest.raises(DataError, match=r"split 'tset': expected one of test, train, validation, the splits of .*jsonl"):
    read("tset", path=str(tmp_path / "a.jsonl"))
