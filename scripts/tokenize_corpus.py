r"""Tokenizes a corpus once: a directory of token ids that training opens in seconds and without TensorFlow.

python -m scripts.tokenize_corpus --config configs/quickstart.py --out tokens
python -m scripts.tokenize_corpus --data source=text --data source.path="corpus/*.jsonl.xz" \
  --data vocabulary=corpus.model --out tokens
python -m scripts.tokenize_corpus --data source=task --data source.task=c4/en:3.1.0 \
  --data vocabulary=t5.model --out tokens

Train with `--config.data.source.name=tokens --config.data.source.path=tokens`.
"""

import argparse

from moe.commands import Parser, new_path, run_script
from moe.data.command_line import add_data_options, parse_data
from moe.data.formats.tokenizing import tokenize


def main(arguments: list[str] | None = None) -> None:
  options = _parse(arguments)
  tokenize(parse_data(options), new_path("--out", options.out))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(description=__doc__.splitlines()[0])
  add_data_options(parser)
  parser.add_argument("--out", required=True, help="the directory to write")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  run_script(main)
