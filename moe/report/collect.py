"""Reads runs for a report: their records, and what their routers do with some validation batches."""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from moe.config import require
from moe.data import DataError
from moe.data.images.classes import ClassVocabulary
from moe.evaluation.restore import Trained, kept_steps, restore, vocabulary_of
from moe.models.count import count_parameters
from moe.models.model_config import ModelConfig
from moe.models.types import shift_right
from moe.models.vision import VisionConfig
from moe.report import statistics
from moe.report.picture_maps import patch_names, picture_maps
from moe.report.token_texts import token_texts
from moe.report.types import Batch, Churn, Layer, Run
from moe.routing import Routing, SoftRouting
from moe.routing.weights import layer_weights
from moe.training.checkpoint import CheckpointError
from moe.training.feed import open_pipeline
from moe.training.metrics_file import read_metrics
from moe.training.state import merge
from moe.training.step import micro_batches
from moe.training.workdir import Workdir

# Per layer. Enough for shares to a percent; limits the memory of large batches and many layers.
_MOST_TOKENS = 20_000


def collect_runs(workdirs: Sequence[str], batches: int) -> list[Run]:
  """Reads every run and feeds `batches` validation batches to its checkpoints; writes nothing.

  Raises:
    WorkdirError, CheckpointError: a folder holds no run, or a run without a readable checkpoint.
    ConfigError: a folder is given twice; the vocabulary is missing, or not the one of training.
    DataError: the validation split cannot be read, or is empty.
  """
  names = run_names(workdirs)
  latest = [restore(workdir, "latest") for workdir in workdirs]  # fails before anything that takes long
  return [_collect(*each, batches) for each in zip(names, workdirs, latest)]


def run_names(workdirs: Sequence[str]) -> list[str]:
  """The folders' names, with as many of their parents as it takes to tell them apart.

  Raises:
    ConfigError: a folder is given twice.
  """
  paths = [pathlib.Path(os.path.abspath(workdir)).parts for workdir in workdirs]
  for index, path in enumerate(paths):
    require(path not in paths[:index], "--workdir", workdirs[index], "expected each run once")
  length = 1
  while len({path[-length:] for path in paths}) < len(paths):
    length += 1
  return [str(pathlib.PurePath(*path[-length:])) for path in paths]


def _collect(name: str, workdir: str, trained: Trained, batches: int) -> Run:
  vocabulary = vocabulary_of(trained)
  micro = list(validation_batches(trained, batches))
  layers = _layers(trained, micro)
  churn, unreadable = _churn(workdir, trained, layers, micro)
  metrics, model = Workdir(workdir).metrics, trained.config.model
  maps = None
  if isinstance(model, VisionConfig) and layers:
    assert isinstance(vocabulary, ClassVocabulary)
    routing = _route(trained.graph, trained.params, trained.router_state, micro[0])["encoder"]
    maps = picture_maps(trained, vocabulary.names, micro[0], jax.device_get(routing))
  ids = np.unique(np.concatenate([[0], *(layer.ids for layer in layers.values())]).astype(int))
  return Run(
    name=name,
    trained=trained,
    parameters=count_parameters(model, 0.0),
    records=read_metrics(metrics),
    batches=micro,
    layers=layers,
    churn=churn,
    unreadable=unreadable,
    texts=patch_names(model) if isinstance(model, VisionConfig) else token_texts(vocabulary, ids),
    maps=maps,
  )


def validation_batches(trained: Trained, batches: int) -> Iterator[Batch]:
  """The first batches of the validation split, in the micro-batches of training, which may be whole routing groups.

  Raises:
    ConfigError, DataError: the split cannot be read, or is empty.
  """
  config = trained.config
  with open_pipeline(config, "validation", training=False) as pipeline:
    read: list[Batch] = list(itertools.islice(pipeline, batches))
  if not read:
    raise DataError("split 'validation'", "holds no example")
  count = config.train.accumulation
  for batch in read:
    parts = micro_batches(batch, count)
    yield from ({name: array[index] for name, array in parts.items()} for index in range(count))


@functools.partial(jax.jit, static_argnames="graph")
def _route(graph: Any, params: Any, router_state: Any, batch: Batch) -> dict[str, Routing | None]:
  """Routing in evaluation mode; jit leaves out what it does not need, such as the logits."""
  return merge(graph, params, router_state)(batch, training=False).routing


def _layers(trained: Trained, batches: Sequence[Batch]) -> dict[str, Layer]:
  """What every layer does with the first `_MOST_TOKENS` tokens of the batches."""
  parts: dict[str, list[Layer]] = {}
  for batch in batches:
    routing = jax.device_get(_route(trained.graph, trained.params, trained.router_state, batch))
    for stack in ("encoder", "decoder"):
      if routing.get(stack) is not None:
        for index, layer in enumerate(stack_layers(trained.config.model, stack, routing[stack], batch)):
          parts.setdefault(f"{stack}/layer_{index}", []).append(layer)
  return {name: _joined(layers) for name, layers in parts.items()}


def stack_layers(model: ModelConfig, stack: str, routing: Routing, batch: Batch) -> list[Layer]:
  """What the MoE layers of one stack did with the real tokens of a batch.

  Args:
    model: the config of the model.
    stack: "encoder" or "decoder".
    routing: of the stack's MoE layers, with a leading axis for the layers.
    batch: what the model read.
  """
  side = "inputs" if stack == "encoder" else "targets"
  segments = batch[f"{side}_segments"]
  if "images" in batch:  # a patch has a place and no id
    ids = positions = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
  else:
    ids = batch[side] if stack == "encoder" else np.asarray(shift_right(batch[side], segments))
    positions = batch[f"{side}_positions"]
  real, soft = segments > 0, isinstance(routing, SoftRouting)
  layers = []
  groups = model.stacks[stack].router.groups(*segments.shape, training=False)
  for table in np.asarray(layer_weights(routing, groups, *segments.shape)):
    weights = table[real]
    least = 1 / weights.shape[-1] if soft else 0.0
    layers.append(Layer(ids[real], positions[real], weights, weights > least, soft))
  return layers


def _joined(layers: Sequence[Layer]) -> Layer:
  """One layer's parts as one, cut to `_MOST_TOKENS`."""

  def join(name: str) -> np.ndarray:
    return np.concatenate([getattr(layer, name) for layer in layers])[:_MOST_TOKENS]

  return Layer(join("ids"), join("positions"), join("weights"), join("chosen"), layers[0].soft)


def _churn(
  workdir: str, latest: Trained, layers: dict[str, Layer], batches: Sequence[Batch]
) -> tuple[dict[str, list[Churn]], list[int]]:
  """By layer, the churn from every kept checkpoint to the next on the same batches; and the unreadable steps."""
  churn: dict[str, list[Churn]] = {name: [] for name in layers}
  before: dict[str, Layer] = {}
  unreadable: list[int] = []
  for step in kept_steps(workdir) if layers else []:
    try:
      now = layers if step == latest.step else _layers(restore(workdir, str(step)), batches)
    except CheckpointError:
      unreadable.append(step)
      continue
    for name, layer in before.items():
      pair = layer.chosen, now[name].chosen
      churn[name].append(Churn(step, statistics.churn(*pair), statistics.random_churn(*pair)))
    before = now
  return churn, unreadable
