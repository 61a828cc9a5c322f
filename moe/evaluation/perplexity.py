"""How well a trained model predicts a text: perplexity and bits per byte, exact over the whole split."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from moe.data import DataConfig
from moe.evaluation.restore import Trained, check_vocabulary
from moe.training.feed import byte_lengths, open_pipeline, open_vocabulary
from moe.training.metrics_file import Record
from moe.training.setup import check_batch
from moe.training.step import make_eval_step
from moe.training.validation import batch_sums, evaluate_batches


def evaluate(trained: Trained, data: DataConfig, split: str, batches: int = 0) -> Record:
  """Evaluates a checkpoint on a split of any data that uses its vocabulary.

  Args:
    trained: from `moe.evaluation.restore`.
    data: the data, with the lengths and the batch size of the evaluation.
    split: of the data.
    batches: how many to read; 0 for one pass over the split.

  Returns:
    As `evaluate_batches`: sums over all tokens are divided once, so padding and unequal batches change nothing.

  Raises:
    ConfigError, DataError: something is wrong with the data, its vocabulary is missing or not the checkpoint's, or its
      batches do not fit the memory.
  """
  with _opened(trained, data, split) as (step, pipeline):
    empty = pipeline.padding()
    return evaluate_batches(step, trained.params, trained.router_state, pipeline, empty, trained.mesh, batches)


def batch_losses(trained: Trained, data: DataConfig, split: str, batches: int) -> list[float]:
  """The loss of each of the first batches of a split, in nats per target token: the blocks that a bootstrap draws.

  Arguments and errors are those of `evaluate`. A batch without a target counts for none.
  """
  with _opened(trained, data, split) as (step, pipeline):
    empty = pipeline.padding()
    sums = batch_sums(step, trained.params, trained.router_state, pipeline, empty, trained.mesh, batches)
    return [float(one["nll"] / one["weight"]) for one in sums if one["weight"]]


@contextlib.contextmanager
def _opened(trained: Trained, data: DataConfig, split: str) -> Iterator[tuple[Callable[..., dict[str, Any]], Any]]:
  """The compiled evaluation of a checkpoint, and the pipeline of a split."""
  # As many micro-batches as in training, or the most that divide this batch.
  accumulation = math.gcd(trained.config.train.accumulation, data.batch_size)
  train = dataclasses.replace(trained.config.train, accumulation=accumulation)
  config = dataclasses.replace(trained.config, data=data, train=train, score=None)  # the split, with nothing held out
  vocabulary = open_vocabulary(config)
  check_vocabulary(trained, vocabulary)
  config.check_mesh(trained.mesh)
  check_batch(config, trained.mesh)
  step = make_eval_step(
    trained.graph,
    byte_lengths(vocabulary, config.model.vocab_size),
    accumulation=accumulation,
    mesh=trained.mesh,
  )
  with open_pipeline(config, split, trained.mesh, training=False) as pipeline:
    yield step, pipeline
