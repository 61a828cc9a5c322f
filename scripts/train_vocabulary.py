r"""Trains a lossless SentencePiece vocabulary on the training split of any source of text.

python -m scripts.train_vocabulary --data source=text --data source.path="corpus/*.jsonl.xz" --size 32000 \
  --out corpus.model
python -m scripts.train_vocabulary --data source=standard_library --size 2048 --across_spaces \
  --out configs/vocabularies/python_2k.model
"""

import argparse
import io
import itertools
import re
import tempfile
from collections.abc import Iterator

import sentencepiece

from moe.commands import Parser, new_path, run_script
from moe.config import ConfigError, require
from moe.data import DataConfig, DataError, load_vocabulary, make_source
from moe.data.command_line import add_data_options, parse_data

_CHECKED_DOCUMENTS = 200


def main(arguments: list[str] | None = None) -> None:
  train(_parse(arguments))


def train(options: argparse.Namespace) -> None:
  """Trains, checks that decoding restores the text, and writes `options.out`.

  Raises:
    ConfigError: the file exists, or the size does not suit the text. DataError: the source has no text.
  """
  out = new_path("--out", options.out)
  require(options.characters >= 1, "--characters", options.characters, "expected at least 1")
  require(1 <= options.size < 2**31, "--size", options.size, "expected from 1 to 2^31 - 1")
  config = parse_data(options)
  texts = list(_texts(config, options.characters))
  if not texts:
    raise DataError(config.source.corpus, "has no training text")
  model = _train(texts, options.size, options.across_spaces)
  with tempfile.NamedTemporaryFile() as file:
    file.write(model)
    file.flush()
    _check(file.name, texts[:_CHECKED_DOCUMENTS])
  with out.open("xb") as new:
    new.write(model)
  print(f"wrote {out}: {options.size} pieces, {len(model)} bytes")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(description=__doc__.splitlines()[0])
  add_data_options(parser)
  parser.add_argument("--size", type=int, required=True, help="pieces, including 3 special ones and 256 bytes")
  parser.add_argument("--across_spaces", action="store_true", help="allow pieces of several words; good for programs")
  parser.add_argument("--characters", type=int, default=100_000_000, help="read about this many at most")
  parser.add_argument("--out", required=True, help="the model file to write")
  return parser.parse_args(arguments)


def _texts(config: DataConfig, left: int) -> Iterator[str]:
  """Training documents, until about `left` characters are read."""
  source = make_source(config, "train", load_vocabulary("bytes", 0))
  for text in itertools.chain.from_iterable(map(source.texts, range(source.num_shards))):
    if left <= 0:
      return
    left -= len(text)
    yield text


def _train(texts: list[str], size: int, across_spaces: bool) -> bytes:
  """The model file: byte-pair encoding, no normalization, a piece for every byte."""
  # A newline begins a sentence instead of ending it: SentencePiece strips it at the end, and "\n" with the indentation
  # after it is what a vocabulary for programs needs.
  # It also leaves out sentences of more than 4,192 bytes, so a longer line is several.
  line = re.compile(r"\n{1,9}[^\n]{0,990}|[^\n]{1,999}")
  sentences = (sentence for text in texts for sentence in line.findall(text))
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
    raise ConfigError("--size", size, f"expected a size that suits this text ({str(error).splitlines()[-1]})") from None
  return model.getvalue()


def _check(path: str, texts: list[str]) -> None:
  """Checks that decoding restores the texts, except those with U+2581, SentencePiece's sign for a space."""
  vocabulary = load_vocabulary(path, 0)
  for text in texts:
    if "\u2581" not in text and vocabulary.decode(vocabulary.encode(text).tolist()) != text:
      raise DataError(path, "does not restore the text that it encodes")


if __name__ == "__main__":
  run_script(main)
