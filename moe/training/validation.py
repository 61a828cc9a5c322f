"""Evaluation of a model on a split, exact for batches of any sizes."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from moe.data import DataError
from moe.parallel.mesh import put_batch
from moe.training.metrics_file import Record, flatten_layers
from moe.training.step import bits_per_byte

Batch = Mapping[str, np.ndarray]


def evaluate_batches(
  eval_step: Callable[..., dict[str, Any]],
  params: Any,
  router_state: Any,
  batches: Iterable[Batch],
  empty: Batch,
  mesh: Mesh,
  limit: int = 0,
) -> Record:
  """Means over all tokens of some batches, which may have padding rows and unequal numbers of weighted tokens.

  Args:
    eval_step: from `make_eval_step`.
    params: of the model.
    router_state: of its routers.
    batches: this host's rows of each; one host may have fewer batches than another.
    empty: this host's rows of a batch of padding.
    mesh: of the devices.
    limit: batches to read; 0 for all.

  Returns:
    loss (nats per weighted target token, the cross-entropy alone), perplexity, accuracy, tokens (the weighted ones); if
    these have a text, bits_per_byte and bytes (of the text); the routers' metrics as `STACK/layer_I/NAME`, means over
    their tokens.

  Raises:
    DataError: the batches hold no token with a loss.
  """
  totals: Any = None
  for sums in batch_sums(eval_step, params, router_state, batches, empty, mesh, limit):
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
  if totals is None or not totals["weight"]:
    raise DataError("the split", "holds no token to evaluate on")
  loss = totals["nll"] / totals["weight"]
  nll, size = totals["nll"], totals["bytes"]
  values = {
    "loss": loss,
    "perplexity": math.exp(min(loss, 700.0)),
    "accuracy": totals["correct"] / totals["weight"],
    "tokens": int(totals["weight"]),
  }
  values |= {"bits_per_byte": bits_per_byte(nll, size), "bytes": int(size)} if size else {}
  return values | flatten_layers(layer_means(totals["layers"], totals["layer_tokens"]))


def batch_sums(
  eval_step: Callable[..., dict[str, Any]],
  params: Any,
  router_state: Any,
  batches: Iterable[Batch],
  empty: Batch,
  mesh: Mesh,
  limit: int = 0,
) -> Iterator[dict[str, Any]]:
  """What `make_eval_step` says of each batch, in float64. The arguments are those of `evaluate_batches`."""
  for batch in itertools.islice(_together(batches, empty), limit or None):
    sums = jax.device_get(eval_step(params, router_state, put_batch(mesh, batch)))
    yield jax.tree.map(np.float64, sums)  # on the host: float32 sums would lose tokens after 2^24 of them


def layer_means(layers: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
  """The routers' metrics by stack and name, from their sums over tokens and the tokens of each stack."""
  return {
    stack: {name: total / max(tokens[stack], 1) for name, total in metrics.items()} for stack, metrics in layers.items()
  }


def _together(batches: Iterable[Batch], empty: Batch) -> Iterator[Batch]:
  """The batches, then padding until they have ended on every host, because every host takes part in every step."""
  if jax.process_count() == 1:
    yield from batches
    return
  batches = iter(batches)
  while True:
    batch = next(batches, None)
    if not multihost_utils.process_allgather(np.array(batch is not None)).any():
      return
    yield empty if batch is None else batch
