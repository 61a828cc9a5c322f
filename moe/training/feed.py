"""What training needs of the data: this host's pipelines, and one input position for all hosts."""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from moe.config import require
from moe.data import Pipeline, Vocabulary, make_pipeline, make_vocabulary
from moe.parallel.mesh import local_rows
from moe.training.experiment import ExperimentConfig
from moe.training.state import Stored


def open_vocabulary(config: ExperimentConfig) -> Vocabulary:
  """The vocabulary of the data.

  Raises:
    ConfigError: it is missing, or has more tokens than the model.
  """
  vocabulary, allowed = make_vocabulary(config.data), config.model.vocab_size
  wanted = f"expected at least {vocabulary.size}, the tokens of the data's vocabulary"
  require(vocabulary.size <= allowed, "config.model.vocab_size", allowed, wanted)
  return vocabulary


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
  """What a checkpoint stores of its vocabulary."""
  return {name: getattr(vocabulary, name) for name in ("name", "size", "extra_ids", "fingerprint")}


def fingerprint(stored: Stored) -> str:
  """Of the arrays that routers read from files."""
  digest = hashlib.sha256()
  for name, array in sorted(
    (f"{stack}.{name}", array) for stack, arrays in stored.items() for name, array in arrays.items()
  ):
    digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:16]


def byte_lengths(vocabulary: Vocabulary, vocab_size: int) -> np.ndarray:
  """`[vocab_size]`, bytes of text for each of the model's tokens; 0 for those beyond the vocabulary."""
  lengths = vocabulary.byte_lengths()
  return np.pad(lengths, (0, vocab_size - len(lengths)))


def open_pipeline(config: ExperimentConfig, split: str, mesh: Mesh | None = None, *, training: bool) -> Pipeline:
  """The batches of a split: the rows that this host's devices of the mesh hold, or all rows without a mesh.

  The split "train" lacks what a run holds out to choose the best step by.

  Raises:
    ConfigError, DataError: what is wrong with the config or the data.
  """
  return make_pipeline(
    config.training_data,
    config.model.row_format,
    split,
    training=training,
    rows=None if mesh is None else local_rows(mesh, config.data.batch_size),
  )


def whole_position(pipeline: Pipeline) -> dict[str, Any]:
  """The input position of all hosts together, which any number of hosts can restore."""
  if jax.process_count() == 1:
    return pipeline.position
  text = np.frombuffer(json.dumps(pipeline.position).encode(), np.uint8)
  longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
  # Spaces, because JSON ignores them.
  rows = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
  return join_positions([json.loads(row.tobytes()) for row in np.asarray(rows, np.uint8)])


def join_positions(positions: list[dict[str, Any]]) -> dict[str, Any]:
  """One position with the streams of all hosts."""
  return positions[0] | {"streams": {name: at for position in positions for name, at in position["streams"].items()}}
