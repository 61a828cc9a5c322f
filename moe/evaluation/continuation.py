"""Continues text: from prompts to what a trained model writes after them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe.config import require
from moe.data import Vocabulary
from moe.evaluation.decoding import generate
from moe.evaluation.restore import Trained


def continue_texts(
  trained: Trained,
  vocabulary: Vocabulary,
  prompts: Sequence[str],
  length: int,
  *,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
) -> list[str]:
  """What the model writes after each prompt.

  Args:
    trained: from `moe.evaluation.restore`.
    vocabulary: the one it was trained with.
    prompts: an encoder reads the last `inputs_length` tokens of each, a decoder all of them.
    length: tokens to write, at most; an end-of-text token ends sooner.
    temperature: as in `generate`.
    top_p: as in `generate`.
    seed: of the sampling.

  Raises:
    ConfigError: no prompt, no length, or a sampling option out of range.
    ValueError: the decoder's router is not causal, so it cannot generate token by token.
  """
  require(len(prompts) > 0, "prompt", list(prompts), "expected at least one")
  require(length >= 1, "length", length, "expected at least 1")
  config = trained.config
  if config.model.row_format == "inputs_and_targets":
    batch = _encoder_batch(vocabulary, prompts, config.data.inputs_length)
  else:
    batch = {"prompt": _rows([vocabulary.encode(prompt) for prompt in prompts])}
  given = batch["prompt"].shape[1] if "prompt" in batch else 0
  arrays = jax.tree.map(jnp.asarray, batch)
  key = jax.random.key(seed)
  tokens = generate(trained.model, arrays, given + length, temperature=temperature, top_p=top_p, key=key)
  # The row of a shorter prompt has room for more than `length`.
  starts = np.count_nonzero(batch["prompt"], axis=1) if given else np.zeros(len(prompts), int)
  return [vocabulary.decode(row[start : start + length]) for row, start in zip(np.asarray(tokens), starts)]


def _encoder_batch(vocabulary: Vocabulary, prompts: Sequence[str], width: int) -> dict[str, np.ndarray]:
  inputs = _rows([vocabulary.encode(prompt)[-width:] for prompt in prompts])
  segments = (inputs > 0).astype(np.int32)
  positions = np.arange(inputs.shape[1], dtype=np.int32) * segments
  return {"inputs": inputs, "inputs_segments": segments, "inputs_positions": positions}


def _rows(sequences: Sequence[np.ndarray]) -> np.ndarray:
  """int32 `[B, T]`, each sequence followed by zeros."""
  rows = np.zeros((len(sequences), max(1, *map(len, sequences), 1)), np.int32)
  for row, sequence in zip(rows, sequences):
    row[: len(sequence)] = sequence
  return rows
