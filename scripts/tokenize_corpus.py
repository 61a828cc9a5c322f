"""Makes a directory of token ids, which training reads in seconds and without TensorFlow, from any source.

  python scripts/tokenize_corpus.py --source text --path "corpus/*.jsonl.xz" --vocabulary corpus.model --out tokens
  python scripts/tokenize_corpus.py --source task --task c4/en:3.1.0 --vocabulary t5.model --out tokens
  python scripts/tokenize_corpus.py --config configs/quickstart.py --out tokens

Train with `--config.data.source=tokens --config.data.path=tokens`.
"""

import argparse
import os
import shutil
import sys
import tempfile

from tqdm import tqdm

from moe.config import ConfigError
from moe.data import DataConfig, DataError, make_source, make_vocabulary
from moe.data.command_line import add_source_options, source_config
from moe.data.tokens import write_meta, write_split

_SPLITS = ("train", "validation")


def main(arguments: list[str] | None = None) -> None:
  options = _parse(arguments)
  try:
    tokenize(source_config(options), options.out)
  except (ConfigError, DataError) as error:
    sys.exit(f"error: {error}")


def tokenize(config: DataConfig, out: str) -> None:
  """Writes both splits to a directory beside `out`, and gives it that name when all is there.

  Raises:
    ConfigError: `out` exists, or the config's data cannot be used. DataError: as the source.
  """
  if os.path.exists(out):
    raise ConfigError("--out", out, "exists already and is not overwritten")
  if config.source == "tokens":
    raise ConfigError("--source", config.source, "is made of token ids already")
  vocabulary = make_vocabulary(config)
  sources = {split: make_source(config, split, vocabulary) for split in _SPLITS}
  parent = os.path.dirname(os.path.abspath(out))
  os.makedirs(parent, exist_ok=True)
  directory = tempfile.mkdtemp(dir=parent, prefix=os.path.basename(out) + ".part")
  try:
    splits = {}
    for split, source in sources.items():
      with tqdm(desc=split, unit=" documents") as bar:
        splits[split] = write_split(directory, split, source, vocabulary, bar.update)
    write_meta(directory, vocabulary, sources["train"].supervised, splits)
    os.chmod(directory, 0o755)  # mkdtemp's is for its owner alone
    os.rename(directory, out)
  except BaseException:
    shutil.rmtree(directory)
    raise
  for split, entry in splits.items():
    print(f"{split}: {entry['documents']} documents, {sum(entry['tokens'].values())} tokens")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add_source_options(parser, ("standard_library", "text", "task"))
  parser.add_argument("--out", required=True, help="the directory to make")
  options = parser.parse_args(arguments)
  if bool(options.config) == bool(options.source):
    parser.error("give either --config or --source")
  return options


if __name__ == "__main__":
  main()
