"""The files that `commands.txt` speaks of: a finished run, configs and data that are wrong in one way each."""

import gzip
import json
import pathlib
import shutil

from moe.training.trainer import train
from tests.convert.test_runs import dense_mapping, untrained
from tests.training.tiny import tiny_config, tiny_mapping, write_corpus

GOOD = '{"text": "the cat sat on a mat"}\n'

CONFIGS = {
  "raises.py": "def get_config():\n  return {}['seed']\n",
  "syntax.py": "def get_config(:\n",
  "imports.py": "import a_module_that_is_not_there\n",
  "no_function.py": "config = {}\n",
  "none.py": "def get_config():\n  return None\n",
  "list.py": "def get_config():\n  return [1]\n",
  "exits.py": "import sys\nsys.exit(3)\n",
  "broken.json": "{",
  "list.json": "[]",
  "not_a_config.txt": "seed = 1\n",
}

DATA = {
  "empty.txt": b"",
  "blank.txt": b" \n\n \n",
  "binary.txt": b"text\0text",
  "latin.txt": "caf\xe9\n".encode("latin-1"),
  "table.csv": b"text\na\n",
  "table.parquet": b"PAR1",
  "archive.zip": b"PK",
  "truncated.jsonl.gz": gzip.compress(GOOD.encode() * 1000)[:-20],
  "not_gzip.jsonl.gz": GOOD.encode(),
  "list.json": json.dumps([{"text": "a"}]).encode(),
  "pretty.json": json.dumps({"text": "a"}, indent=2).encode(),
  "cut.jsonl": (GOOD * 3 + '{"text": "cut o').encode(),
  "surrogate.jsonl": (GOOD + '{"text": "half \\ud83d"}\n').encode(),
  "null.jsonl": (GOOD + '{"text": null}\n').encode(),
  "number.jsonl": (GOOD + '{"text": 3}\n').encode(),
  "list.jsonl": (GOOD + "[1]\n").encode(),
  "no_text.jsonl": b'{"content": "a"}\n',
  "twice.jsonl": (GOOD + '{"text": "a", "text": "b"}\n').encode(),
  "deep.jsonl": (GOOD + '{"text": ' + "[" * 100_000 + "\n").encode(),
  "records.txt": (GOOD * 3).encode(),
  "not_sentencepiece.model": b"not a model",
}


def make_world(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes the files; returns the paths by the names that `commands.txt` has for them."""
  corpus = write_corpus(folder / "corpus.jsonl")
  mapping = tiny_mapping(corpus, steps=2, eval_every=2, eval_batches=1, checkpoint_every=2)
  mapping["data"]["source"]["validation_fraction"] = 0.2
  good = folder / "good.py"
  good.write_text(f"def get_config():\n  return {mapping!r}\n")
  for name, text in CONFIGS.items():
    (folder / name).write_text(text)
  data = folder / "data"
  data.mkdir()
  for name, content in DATA.items():
    (data / name).write_bytes(content)
  (folder / "empty_folder").mkdir()
  run = folder / "run"
  train(tiny_config(corpus, steps=2, eval_every=2, eval_batches=1, checkpoint_every=2), run)
  damaged = shutil.copytree(run, folder / "damaged")
  for array in (damaged / "checkpoints" / "2" / "model" / "d").iterdir():
    array.write_bytes(b"")
  return {
    "dense": untrained(dense_mapping(corpus), folder / "dense"),
    "tmp": folder,
    "data": data,
    "good": good,
    "run": run,
    "damaged": damaged,
    "corpus": corpus,
    "empty": folder / "empty_folder",
    "new": folder / "new",
    "file": corpus,
  }
