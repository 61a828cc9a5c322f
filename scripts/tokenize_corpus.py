r"""Tokenizes a corpus once: a directory of token ids that training opens in seconds and without TensorFlow.

python -m scripts.tokenize_corpus --config configs/quickstart.py --out tokens
python -m scripts.tokenize_corpus --data source=text --data source.path="corpus/*.jsonl.xz" \
  --data vocabulary=corpus.model --out tokens
python -m scripts.tokenize_corpus --data source=task --data source.task=c4/en:3.1.0 \
  --data vocabulary=t5.model --out tokens

Train with `--config.data.source.name=tokens --config.data.source.path=tokens`.
"""

import argparse
import os
import pathlib
import shutil
import tempfile

from tqdm import tqdm

from moe.commands import Parser, new_path, run_script
from moe.config import require
from moe.data import DataConfig, make_source, make_vocabulary
from moe.data.command_line import add_data_options, parse_data
from moe.data.formats.token_directory import write_meta, write_split
from moe.data.source import SPLITS


def main(arguments: list[str] | None = None) -> None:
  options = _parse(arguments)
  tokenize(parse_data(options), new_path("--out", options.out))


def tokenize(config: DataConfig, out: pathlib.Path) -> None:
  """Writes both splits to a temporary directory next to `out`, and renames it when it is complete.

  Raises:
    ConfigError: the config's data cannot be used. DataError: the source cannot be read.
  """
  stored = config.source.stores_vocabulary
  require(not stored, "config.data.source", config.source.name, "expected a source that is not token ids already")
  vocabulary = make_vocabulary(config)
  sources = {split: make_source(config, split, vocabulary) for split in SPLITS}
  directory = tempfile.mkdtemp(dir=out.parent, prefix=out.name + ".part")
  try:
    splits = {}
    for split, source in sources.items():
      with tqdm(desc=split, unit=" documents") as bar:
        splits[split] = write_split(directory, split, source, vocabulary, bar.update)
    write_meta(directory, vocabulary, sources["train"].supervised, splits)
    os.chmod(directory, 0o755)  # mkdtemp's can be read by its owner only
    os.rename(directory, out)
  except BaseException:
    shutil.rmtree(directory)
    raise
  for split, entry in splits.items():
    print(f"{split}: {entry['documents']} documents, {sum(entry['tokens'].values())} tokens")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(description=__doc__.splitlines()[0])
  add_data_options(parser)
  parser.add_argument("--out", required=True, help="the directory to write")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  run_script(main)
