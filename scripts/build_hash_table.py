r"""Makes the table of a hash layer, which assigns token ids to experts, from a corpus or a trained baseline.

python -m scripts.build_hash_table --function balanced --experts 16 --config configs/quickstart.py --out balanced.npz
python -m scripts.build_hash_table --function predicted_future --experts 16 --data source=tokens \
  --data source.path=tokens --out next.npz
python -m scripts.build_hash_table --function clustered --experts 16 --workdir runs/baseline --out clustered.npz

Train with `--config.model.decoder.moe.router.function=balanced` and `...router.table=balanced.npz`. The corpus is the
training split. Frequencies are of the ids that a decoder reads: a 0, then the document.
"""

import argparse
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from moe.commands import Parser, new_path, run_script
from moe.config import require
from moe.data import DataConfig, DataError, Vocabulary, make_source, make_vocabulary
from moe.data.command_line import add_data_options, parse_data
from moe.data.documents import Ragged
from moe.data.source import Source
from moe.routing.solvers.hash_tables import (
  TABLE_FUNCTIONS,
  HashTable,
  balanced,
  count_pairs,
  dispersed,
  largest_share,
  likeliest_successor,
  predicted_future,
)

_OF_EMBEDDINGS = ("clustered", "dispersed")


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
  buckets = options.experts // options.hashes
  config, embeddings = _config_and_embeddings(options)
  vocabulary = make_vocabulary(config)
  read = _reads(make_source(config, "train", vocabulary), options.tokens)
  pairs, counts = count_pairs(read, vocabulary.size)
  if not len(pairs):
    raise DataError(config.source.corpus, "has no training text")
  frequency = np.bincount(pairs // vocabulary.size, counts, minlength=vocabulary.size).astype(np.int64)
  match options.function:
    case "balanced":
      tables = [balanced(frequency, buckets, rng) for rng in [None, *_draws(options)[1:]]]
    case "predicted_future":
      prediction = likeliest_successor(pairs, counts, vocabulary.size)
      tables = list(predicted_future(prediction, buckets, options.hashes, options.seed))
    case _:
      tables = _of_embeddings(embeddings[: vocabulary.size], options.function, buckets, options)
  _write(out, np.stack(tables).astype(np.int32), vocabulary, config, options)
  _report(tables, frequency, buckets)


def _config_and_embeddings(options: argparse.Namespace) -> tuple[DataConfig, np.ndarray | None]:
  """The data, by default the baseline's, and the baseline's embeddings `[V, d]`, or None without a baseline."""
  given = parse_data(options) if options.config or options.data else None
  if not options.workdir:
    return given, None
  from moe.evaluation.restore import check_vocabulary, restore

  trained = restore(options.workdir, options.step)
  config = given or trained.config.data
  check_vocabulary(trained, make_vocabulary(config))
  return config, np.asarray(trained.params["embedding"]["table"])


def _reads(source: Source, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """What a decoder reads and what it should predict, `[n]` each, block by block until about `limit` tokens."""
  for shard in range(source.num_shards):
    for block in source.blocks(shard, 0, 0):
      for documents in filter(None, (block.inputs, block.targets)):
        if limit <= 0:
          return
        previous, following = _shifted(documents)
        limit -= len(following)
        yield previous, following


def _shifted(documents: Ragged) -> tuple[np.ndarray, np.ndarray]:
  """The token before each token, 0 at the start of a document, and the tokens."""
  first, last = documents.offsets[0], documents.offsets[-1]
  following = np.asarray(documents.flat[first:last])
  previous = np.concatenate([following[:1] * 0, following[:-1]])
  starts = documents.offsets[:-1][documents.lengths > 0] - first
  previous[starts] = 0
  return previous, following


def _of_embeddings(
  embeddings: np.ndarray, function: str, buckets: int, options: argparse.Namespace
) -> list[np.ndarray]:
  """A table per hash, each from a k-means clustering with a start of its own."""
  import jax
  import jax.numpy as jnp

  from moe.routing.solvers.clustering import assign, k_means

  tables = []
  for number, rng in enumerate(_draws(options)):
    centroids, _ = k_means(embeddings, buckets, jax.random.key(options.seed + number))
    clusters = np.asarray(assign(jnp.asarray(embeddings), centroids))
    tables.append(clusters if function == "clustered" else dispersed(clusters, buckets, rng))
  return tables


def _draws(options: argparse.Namespace) -> list[np.random.Generator]:
  return [np.random.default_rng([options.seed, number]) for number in range(options.hashes)]


def _write(
  out: pathlib.Path, tables: np.ndarray, vocabulary: Vocabulary, config: DataConfig, options: argparse.Namespace
) -> None:
  baseline = f" and the baseline {options.workdir}, step {options.step}" if options.workdir else ""
  source = f"{config.source.corpus}{baseline}, seed {options.seed}"
  HashTable(tables, options.experts, vocabulary.fingerprint, options.function, source).write(str(out))
  print(f"wrote {out}: {options.function}, {len(tables)} x {vocabulary.size} tokens, of {source}")


def _report(tables: Sequence[np.ndarray], frequency: np.ndarray, buckets: int) -> None:
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
  if bool(options.workdir) != (options.function in _OF_EMBEDDINGS):
    parser.error(f"--workdir is for --function {' and '.join(_OF_EMBEDDINGS)}, which need it")
  if not (options.config or options.data or options.workdir):
    parser.error("give --config or --data")
  return options


if __name__ == "__main__":
  run_script(main)
