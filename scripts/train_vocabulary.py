r"""Trains a SentencePiece vocabulary on the training split of any text source, so that no text is changed or lost.

python scripts/train_vocabulary.py --source text --path "corpus/*.jsonl.xz" --size 32000 --out corpus.model
python scripts/train_vocabulary.py --source standard_library --size 2048 --across_spaces \
  --out configs/vocabularies/python_2k.model
"""

import argparse
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator

import sentencepiece

from moe.config import ConfigError
from moe.data import DataConfig, DataError, load_vocabulary, make_source

_CHECKED_DOCUMENTS = 200


def main(arguments: list[str] | None = None) -> None:
  options = _parse(arguments)
  try:
    train(options)
  except (ConfigError, DataError) as error:
    sys.exit(f"error: {error}")


def train(options: argparse.Namespace) -> None:
  """Trains, checks that text comes back unchanged, and writes `options.out`.

  Raises:
    ConfigError: the file exists, the size is too small, or the source has no text.
  """
  if os.path.exists(options.out):
    raise ConfigError("--out", options.out, "exists already and is not overwritten")
  texts = list(_texts(options))
  if not texts:
    raise DataError(options.source, "has no training text")
  model = _train(texts, options.size, options.across_spaces)
  with tempfile.NamedTemporaryFile(dir=os.path.dirname(options.out) or ".", suffix=".part", delete=False) as file:
    file.write(model)
  try:
    _check(file.name, texts[:_CHECKED_DOCUMENTS])
    os.rename(file.name, options.out)
  except BaseException:
    os.unlink(file.name)
    raise
  print(f"wrote {options.out}: {options.size} pieces, {len(model)} bytes")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--source", choices=("standard_library", "text", "task"), required=True)
  parser.add_argument("--path", default="", help="the glob of --source text")
  parser.add_argument("--task", default="", help="the TFDS name of --source task")
  parser.add_argument("--data_dir", default="", help="the TFDS directory of --source task")
  parser.add_argument("--text_key", default="text", help="the field of JSON lines or TFDS that holds the text")
  parser.add_argument("--size", type=int, required=True, help="pieces, with the 3 special and 256 bytes")
  parser.add_argument("--across_spaces", action="store_true", help="pieces may hold several words; good for programs")
  parser.add_argument("--characters", type=int, default=100_000_000, help="read about so many at most")
  parser.add_argument("--out", required=True, help="the model file to write")
  return parser.parse_args(arguments)


def _texts(options: argparse.Namespace) -> Iterator[str]:
  config = DataConfig(
    source=options.source,
    path=options.path,
    task=options.task,
    data_dir=options.data_dir,
    text_key=options.text_key,
    vocabulary="bytes",
    inputs_length=512,
    targets_length=512,
    batch_size=1,
  )
  source = make_source(config, "train", load_vocabulary("bytes", 0))
  left = options.characters
  for text in itertools.chain.from_iterable(map(source.texts, range(source.num_shards))):
    if left <= 0:
      return
    left -= len(text)
    yield text


def _train(texts: list[str], size: int, across_spaces: bool) -> bytes:
  """The model file's content: byte-pair pieces, no normalisation, every byte a piece of its own."""
  # A line end opens a sentence rather than closes it: SentencePiece strips it at the end, and "\n" with the
  # indentation that follows is what a vocabulary for programs should know.
  sentences = (sentence for text in texts for sentence in re.findall(r"\n+[^\n]*|[^\n]+", text))
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=sentences,
      model_writer=model,
      model_type="bpe",
      vocab_size=size,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      split_by_whitespace=not across_spaces,
      split_by_unicode_script=not across_spaces,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ConfigError("--size", size, f"cannot be reached with this text ({str(error).splitlines()[-1]})") from None
  return model.getvalue()


def _check(path: str, texts: list[str]) -> None:
  """Encodes and decodes the texts. SentencePiece's own sign for a space, U+2581, is the one exception."""
  vocabulary = load_vocabulary(path, 0)
  for text in texts:
    if "\u2581" not in text and vocabulary.decode(vocabulary.encode(text)) != text:
      raise DataError(path, "does not give back the text that it encodes")


if __name__ == "__main__":
  main()
