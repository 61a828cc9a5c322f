r"""Makes the table of a hash layer, which assigns token ids to experts, from a corpus or a trained baseline.

python -m scripts.build_hash_table --function balanced --experts 16 --config configs/quickstart.py --out balanced.npz
python -m scripts.build_hash_table --function predicted_future --experts 16 --data source=tokens \
  --data source.path=tokens --out next.npz
python -m scripts.build_hash_table --function clustered --experts 16 --workdir runs/baseline --out clustered.npz

Train with `--config.model.decoder.moe.router.function=balanced` and `...router.table=balanced.npz`. The corpus is the
training split. Frequencies are of the ids that a decoder reads: a 0, then the document.
"""

import argparse
import dataclasses

import numpy as np

from moe.commands import Parser, new_path, run_script
from moe.config import require
from moe.convert.hash_table import OF_EMBEDDINGS, make_table, read_corpus
from moe.data import DataConfig, make_vocabulary
from moe.data.command_line import add_data_options, parse_data
from moe.evaluation.restore import Trained, check_vocabulary, restore
from moe.routing.solvers.hash_tables import TABLE_FUNCTIONS, largest_share


def main(arguments: list[str] | None = None) -> None:
  build(_parse(arguments))


def build(options: argparse.Namespace) -> None:
  """Writes the table and prints how even it is.

  Raises:
    ConfigError: the file exists, or an option is wrong. DataError: the data cannot be read. WorkdirError,
      CheckpointError: the baseline cannot be restored.
  """
  out = new_path("--out", options.out)
  sections = options.experts >= 1 and options.hashes >= 1 and options.experts % options.hashes == 0
  require(sections, "--hashes", options.hashes, f"expected a divisor of --experts = {options.experts}")
  require(options.tokens >= 1, "--tokens", options.tokens, "expected at least 1")
  require(options.seed >= 0, "--seed", options.seed, "expected at least 0")
  config, baseline = _config_and_baseline(options)
  corpus = read_corpus(config, options.tokens)
  sizes = {"hashes": options.hashes, "seed": options.seed}
  table = make_table(options.function, corpus, options.experts, baseline=baseline, **sizes)
  named = f" and the baseline {options.workdir}, step {options.step}" if options.workdir else ""
  table = dataclasses.replace(table, source=f"{table.source}{named}, seed {options.seed}")
  table.write(str(out))
  print(f"wrote {out}: {table.function}, {options.hashes} x {corpus.vocabulary.size} tokens, of {table.source}")
  _report(table.buckets, corpus.frequency, options.experts // options.hashes)


def _config_and_baseline(options: argparse.Namespace) -> tuple[DataConfig, Trained | None]:
  """The data, by default the baseline's, and the baseline, if there is one."""
  given = parse_data(options) if options.config or options.data else None
  if not options.workdir:
    return given, None
  baseline = restore(options.workdir, options.step)
  config = given or baseline.config.data
  check_vocabulary(baseline, make_vocabulary(config))
  return config, baseline


def _report(tables: np.ndarray, frequency: np.ndarray, buckets: int) -> None:
  for number, table in enumerate(tables):
    share = largest_share(table, frequency, buckets)
    print(
      f"hash {number}: the fullest of {buckets} experts takes {share:.2%} of the tokens ({1 / buckets:.2%} if even)"
    )
  token, share = int(frequency.argmax()), frequency.max() / frequency.sum()
  print(f"no table can have less than the most frequent token's: id {token}, {share:.2%}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--function", choices=TABLE_FUNCTIONS, required=True)
  parser.add_argument("--experts", type=int, required=True)
  parser.add_argument("--hashes", type=int, default=1, help="of MultiHash: sections that the experts are divided into")
  add_data_options(parser)
  parser.add_argument(
    "--workdir", help="the run of a baseline, for functions of its embeddings; its data is the default"
  )
  parser.add_argument("--step", default="best", help="the baseline's checkpoint: a number, 'best' or 'latest'")
  parser.add_argument("--tokens", type=int, default=100_000_000, help="read about this many at most")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", required=True, help="the .npz file to write")
  options = parser.parse_args(arguments)
  if bool(options.workdir) != (options.function in OF_EMBEDDINGS):
    parser.error(f"--workdir is for --function {' and '.join(OF_EMBEDDINGS)}, which need it")
  if not (options.config or options.data or options.workdir):
    parser.error("give --config or --data")
  return options


if __name__ == "__main__":
  run_script(main)
