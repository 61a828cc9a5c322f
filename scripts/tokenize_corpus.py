"""Makes a directory of token ids, which training reads in seconds and without TensorFlow, from any source.

  python scripts/tokenize_corpus.py --source text --path "corpus/*.jsonl.xz" --vocabulary corpus.model --out tokens
  python scripts/tokenize_corpus.py --source task --task c4/en:3.1.0 --vocabulary t5.model --out tokens
  python scripts/tokenize_corpus.py --config configs/quickstart.py --out tokens

Train with `--config.data.source=tokens --config.data.path=tokens`.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile

from tqdm import tqdm

from moe.config import ConfigError, build
from moe.data import DataConfig, DataError, make_source, make_vocabulary
from moe.data.tokens import write_meta, write_split

_SPLITS = ("train", "validation")


def main(arguments: list[str] | None = None) -> None:
  options = _parse(arguments)
  try:
    tokenize(_config(options), options.out)
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
  parser.add_argument("--config", help="a config file whose data section to use, instead of the options below")
  parser.add_argument("--source", choices=("standard_library", "text", "task"))
  parser.add_argument("--vocabulary", default="bytes", help="'bytes' or a SentencePiece model")
  parser.add_argument("--extra_ids", type=int, default=100, help="sentinels above the vocabulary's pieces")
  parser.add_argument("--path", default="", help="the glob of --source text")
  parser.add_argument("--validation_path", default="", help="a glob for validation text")
  parser.add_argument("--task", default="", help="the seqio or TFDS name of --source task")
  parser.add_argument("--data_dir", default="", help="the TFDS directory of --source task")
  parser.add_argument("--text_key", default="text", help="the field of JSON lines or TFDS that holds the text")
  parser.add_argument("--train_split", default="train", help="the task's name of the training split")
  parser.add_argument("--validation_split", default="validation", help="the task's name of the validation split")
  parser.add_argument("--modules", nargs="*", default=(), help="modules that register the task")
  parser.add_argument("--out", required=True, help="the directory to make")
  options = parser.parse_args(arguments)
  if bool(options.config) == bool(options.source):
    parser.error("give either --config or --source")
  return options


def _config(options: argparse.Namespace) -> DataConfig:
  if options.config:
    return build(DataConfig, _load(options.config)["data"], "config.data")
  given = {name: value for name, value in vars(options).items() if name not in ("config", "out")}
  # The lengths belong to training; documents are stored whole.
  return build(DataConfig, {**given, "inputs_length": 512, "targets_length": 512, "batch_size": 1}, "options")


def _load(path: str) -> dict:
  """What the config file's `get_config` gives, as nested dicts."""
  if not os.path.isfile(path):
    raise ConfigError("--config", path, "no such file")
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config().to_dict()


if __name__ == "__main__":
  main()
