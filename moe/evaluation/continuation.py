"""Continues text: from prompts to what a trained model writes after them.

What is written after a prompt depends on the prompt and the model, not on the other prompts nor on how much is written:
inputs end and are cut as in training, each is encoded on its own in a row as long as those of training, and routers
count their capacity for such rows. Only rounding may differ, as sums over other shapes add up in another order.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from moe.config import require
from moe.data import Vocabulary
from moe.data.vocabulary import EOS
from moe.evaluation.decoding import GREEDY, Sampling, generate
from moe.evaluation.restore import Trained
from moe.models import Batch
from moe.training.experiment import ExperimentConfig

MOST_TOKENS = 2**16


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What a model reads of a text.

  Attributes:
    ids: int32 `[n]`, ended and cut as in training.
    cut: what is left out, in words; empty if nothing is.
  """

  ids: np.ndarray
  cut: str


def read_prompts(config: ExperimentConfig, vocabulary: Vocabulary, texts: Sequence[str]) -> list[Prompt]:
  """What the model reads of each text, by the objective that it was trained with."""
  shape, prompts = config.data.row_shape(config.model.row_format), []
  for whole in vocabulary.encode_many(texts):
    ids = config.data.objective.prompt(whole, shape)
    read = ids[:-1] if len(ids) and ids[-1] == EOS else ids
    which = "first" if np.array_equal(read, whole[: len(read)]) else "last"
    cut = f"the model reads the {which} {len(read):,} of its {len(whole):,} tokens, as in training"
    prompts.append(Prompt(ids, cut if len(read) < len(whole) else ""))
  return prompts


def continue_texts(
  trained: Trained,
  vocabulary: Vocabulary,
  texts: Sequence[str],
  length: int,
  sampling: Sampling = GREEDY,
) -> list[str]:
  """What the model writes after each text; arguments and errors as in `continue_prompts`."""
  prompts = [prompt.ids for prompt in read_prompts(trained.config, vocabulary, texts)]
  return [vocabulary.decode(ids.tolist()) for ids in continue_prompts(trained, prompts, length, sampling)]


def continue_prompts(
  trained: Trained,
  prompts: Sequence[np.ndarray],
  length: int,
  sampling: Sampling = GREEDY,
  *,
  rows: int = 16,
  progress: Callable[[int, int], None] = lambda done, most: None,
) -> Iterator[np.ndarray]:
  """The ids that the model writes after each prompt, int32 `[length]` with zeros after an end-of-text token.

  Args:
    trained: from `moe.evaluation.restore`.
    prompts: int32 `[n]`, the ids of each; they are continued in this order.
    length: tokens to write, at most; an end-of-text token ends sooner.
    sampling: how tokens are chosen.
    rows: prompts continued at a time.
    progress: called every now and then with the steps done and the most there are, a step for each token of a row.

  Raises:
    ConfigError: no prompt, or a length out of range.
    ValueError: the decoder's router is not causal, so it cannot generate token by token.
  """
  check_request(len(prompts), length)
  config = trained.config
  row_length = config.model.stack_lengths(config.data.inputs_length, config.data.targets_length)["decoder"]
  reads_inputs = config.model.row_format == "inputs_and_targets"
  given = 0 if reads_inputs else max(map(len, prompts))
  steps, batches = given + length, -(-len(prompts) // rows)
  for index in range(batches):
    first = index * rows
    some = prompts[first : first + rows]
    # Rows of the last batch without a prompt repeat its first, so that nothing is compiled again.
    filled = [*some, *[some[0]] * (min(rows, len(prompts)) - len(some))]
    batch = _inputs(config, filled) if reads_inputs else _prompts(filled, given)
    report = lambda done, index=index: progress(index * steps + done, batches * steps)  # noqa: E731
    tokens = generate(trained.model, batch, steps, row_length, sampling, first_row=first, progress=report)
    for row, prompt in zip(np.asarray(tokens), some):
      start = 0 if reads_inputs else len(prompt)
      # The row of a shorter prompt has room for more than `length`.
      yield row[start : start + length]


def check_request(prompts: int, length: int) -> None:
  """Raises `ConfigError` unless there are prompts and `length`, the tokens to write, is in range."""
  require(prompts > 0, "prompt", None, "expected at least one")
  require(1 <= length <= MOST_TOKENS, "length", length, f"expected from 1 to {MOST_TOKENS:,} tokens")


def _inputs(config: ExperimentConfig, prompts: Sequence[np.ndarray]) -> Batch:
  """What an encoder reads: a row for each prompt, as long as those of training."""
  shape, nothing = config.data.row_shape(config.model.row_format), np.zeros(0, np.int32)
  batch = shape.empty(len(prompts))
  for row, ids in enumerate(prompts):
    shape.fill(batch, row, [(ids, nothing)])
  return {name: jnp.asarray(array) for name, array in batch.items() if name.startswith("inputs")}


def _prompts(prompts: Sequence[np.ndarray], width: int) -> Batch:
  """What a decoder reads first: a row for each prompt, with zeros after it."""
  return {"prompt": jnp.asarray([np.pad(ids, (0, width - len(ids))) for ids in prompts], jnp.int32)}
