"""JSON lines: every value that JSON allows is a record, or one line that names the file and the line."""

import bz2
import gzip
import json
import lzma

import pytest

from moe.data import DataError, make_pipeline
from moe.data.formats import json_lines
from moe.data.sources.text import TextConfig
from tests.data.conftest import make_config, make_texts, write_json_lines
from tests.data.test_text import read

GOOD = b'{"text": "good"}\n'


def read_whole(path, **fields) -> list[str]:
  """All documents of the file."""
  return read(path=str(path), validation_path=str(path), **fields)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonlines", "A.JSON"])
@pytest.mark.parametrize(
  ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".XZ", lzma.compress), (".bz2", bz2.compress)]
)
def test_names_of_json_are_read_as_records(tmp_path, name, suffix, compress):
  texts = make_texts(10)
  lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
  (tmp_path / (name + suffix)).write_bytes(compress(lines.encode()))
  assert read_whole(tmp_path / (name + suffix)) == texts


def test_zstandard_is_read_across_its_frames(tmp_path):
  compress = pytest.importorskip("zstandard").compress
  (tmp_path / "a.jsonl.zst").write_bytes(compress(GOOD) + compress(GOOD * 2))
  assert read_whole(tmp_path / "a.jsonl.zst") == ["good"] * 3


@pytest.mark.parametrize(
  ("name", "content", "problem"),
  [
    ("a.json", b'[{"text": "x"},\n {"text": "y"}]', "is a JSON list: expected one record per line"),
    ("a.json", b'{\n  "text": "x"\n}\n', "is a JSON object over several lines: expected one record per line"),
    ("part-00000", GOOD * 3, r"holds JSON lines: expected a name that ends in \.jsonl"),
    ("a.txt.gz", gzip.compress(GOOD * 3, mtime=0), r"holds JSON lines: expected a name that ends in \.jsonl"),
  ],
)
def test_a_file_of_another_form_than_its_name_says_is_rejected(tmp_path, name, content, problem):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=f"{name}: {problem}"):
    read_whole(tmp_path / name, on_bad_record="skip")


@pytest.mark.parametrize(
  ("line", "text"),
  [
    (b'{"text": "x", "score": NaN, "more": {"text": [null]}}', "x"),
    (b'{"text": ""}', ""),
    (b'{"text": "a\\u0000b"}', "a\0b"),
    (b'{"text": "\\ud83d\\ude42"}', "\U0001f642"),
    (b'\xef\xbb\xbf{"text": "x"}\r', "x"),
    (b'  {"text": "x", "split": null}  ', "x"),
    (b'{"text": "say \\"text\\": twice"}', 'say "text": twice'),
    (b'{"text": "' + b"long " * 100_000 + b'"}', "long " * 100_000),
  ],
)
def test_these_lines_are_records(tmp_path, line, text):
  (tmp_path / "a.jsonl").write_bytes(b"\n \r\n" + GOOD + line + b"\n\n" + GOOD.rstrip())
  assert read_whole(tmp_path / "a.jsonl") == ["good", text, "good"]


BAD = [
  (b"{not json}", "is not JSON"),
  (b'{"text": "cut o', "is not JSON"),
  (b'{"text": "a\tb"}', "is not JSON"),
  (b'{"text": "a\0b"}', "is not JSON"),
  (GOOD.strip() * 2, "is not JSON"),
  (b"[1]", "has no text field 'text'"),
  (b"null", "has no text field 'text'"),
  (b'{"title": "x"}', "has no text field 'text'"),
  (b'{"text": null}', "has no text in the field 'text', but null"),
  (b'{"text": 3}', "has no text in the field 'text', but a number"),
  (b'{"text": NaN}', "has no text in the field 'text', but a number"),
  (b'{"text": true}', "has no text in the field 'text', but true or false"),
  (b'{"text": ["x"]}', "has no text in the field 'text', but a list"),
  (b'{"text": {"text": "x"}}', "has no text in the field 'text', but an object"),
  (b'{"text": "x", "split": ["train"]}', "has no text in the field 'split', but a list"),
  (b'{"text": "x", "split": 0}', "has no text in the field 'split', but a number"),
  (b'{"text": "x", "text": "y"}', "has the field 'text' twice"),
  (b'{"text": "half \\ud83d"}', r"has half a surrogate pair in the field 'text' \(character 5\)"),
  (b'{"text": "caf\xe9"}', r"is not UTF-8 \(byte 13 of the line\)"),
  (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", "cannot be read as JSON"),
  (b"[" * 200_000, "cannot be read as JSON"),
]


@pytest.mark.parametrize(("line", "problem"), BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_or_left_out(tmp_path, line, problem, capfd):
  (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
  with pytest.raises(DataError, match=rf"a\.jsonl, line 3: {problem}.*on_bad_record = 'skip'") as error:
    read_whole(tmp_path / "a.jsonl")
  assert "\n" not in str(error.value)
  assert read_whole(tmp_path / "a.jsonl", on_bad_record="skip") == ["good", "good"]
  said = capfd.readouterr().err
  assert said.startswith(f"skipped {tmp_path}/a.jsonl, line 3: ") and said.count("\n") == 1


def test_a_line_beyond_all_measure_is_bad_and_what_follows_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(json_lines, "LONGEST_LINE", 64)
  for length in (64, 65, 128, 200):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "'.ljust(length - 3, b"x") + b'"}\n' + GOOD)
    with pytest.raises(DataError, match="line 1: has more than"):
      read_whole(tmp_path / "a.jsonl")
    assert read_whole(tmp_path / "a.jsonl", on_bad_record="skip") == ["good"]


def test_bad_records_are_counted_once_whatever_is_read_again(tmp_path, capfd, small_blocks):
  lines = [json.dumps({"text": f"text {number}"}) for number in range(30)]
  lines[3] = lines[11] = lines[29] = "{"
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  config = make_config(TextConfig(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl"), on_bad_record="skip"))
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    while pipeline.position["streams"]["0"][0] < 2:
      next(pipeline)
    assert pipeline.skipped == 3
  said = capfd.readouterr().err.splitlines()
  assert said[0].startswith(f"skipped {tmp_path}/a.jsonl, line 4: is not JSON")
  assert said[1:] == [f"skipped 3 bad records of {tmp_path}/a.jsonl"]


def test_a_bad_line_far_in_the_data_comes_after_every_batch_before_it(tmp_path, small_blocks):
  """Blocks are of 5 documents: the sixth block is bad, and the 25 documents before it are given."""
  write_json_lines(tmp_path / "good.jsonl", [{"text": "x"}])
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(27)) + "{\n")
  source = TextConfig(str(tmp_path / "a.jsonl"), str(tmp_path / "good.jsonl"))
  config = make_config(source, pack=False, batch_size=1)
  with make_pipeline(config, "inputs_and_targets", "train", training=True) as pipeline:
    for _ in range(25):
      next(pipeline)
    with pytest.raises(DataError, match="line 28: is not JSON"):
      next(pipeline)
