"""Makes a token directory of any source of text."""

import os
import pathlib
import shutil
import tempfile

from tqdm import tqdm

from moe.config import require
from moe.data.corpus import make_source, make_vocabulary
from moe.data.data_config import DataConfig
from moe.data.formats.token_directory import write_meta, write_split
from moe.data.source import SPLITS


def tokenize(config: DataConfig, out: pathlib.Path) -> None:
  """Writes both splits to a temporary directory next to `out`, and renames it when it is complete.

  Raises:
    ConfigError: the config's data cannot be used. DataError: the source cannot be read.
  """
  stored = config.source.stores_vocabulary
  require(not stored, "config.data.source", config.source.name, "expected a source that is not token ids already")
  vocabulary = make_vocabulary(config)
  sources = {split: make_source(config, split, vocabulary) for split in SPLITS}
  directory = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=out.name + ".part"))
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
