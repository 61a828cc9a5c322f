"""What a report knows of a run: its records, and what its routers do with some validation batches."""

import dataclasses
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
from moe.evaluation.restore import Trained, check_vocabulary, kept_steps, restore
from moe.models.count import ParameterCounts, count_parameters
from moe.models.model_config import ModelConfig
from moe.models.types import shift_right
from moe.report import statistics
from moe.report.token_texts import token_texts
from moe.routing import Routing, SoftRouting
from moe.routing.weights import expert_weights
from moe.training.checkpoint import CheckpointError
from moe.training.feed import open_pipeline, open_vocabulary
from moe.training.metrics import Record, read_metrics
from moe.training.state import merge
from moe.training.step import micro_batches
from moe.training.workdir import Workdir

# What is said of a run whose losses may know the future.
LEAKS = "future leakage"

# Of each layer, enough for shares to a percent; bounds the memory that a large batch or many layers take.
_MOST_TOKENS = 20_000

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one MoE layer did with n real tokens, in the order of the text.

  Attributes:
    ids: int32 `[n]`, what the layer's stack read.
    positions: int32 `[n]`, within each token's own sequence; 0 begins one.
    weights: float32 `[n, E]`, what each expert's output is multiplied by.
    chosen: bool `[n, E]`, which experts count as the token's: those with a weight, in soft routing those with more
      than an even share, 1 / E.
    soft: whether it is soft routing.
  """

  ids: np.ndarray
  positions: np.ndarray
  weights: np.ndarray
  chosen: np.ndarray
  soft: bool

  @property
  def experts(self) -> int:
    return self.chosen.shape[1]

  @property
  def load(self) -> np.ndarray:
    """`[E]`, each expert's share of the assignments; in soft routing of the weights."""
    return statistics.shares(self.weights if self.soft else self.chosen)


@dataclasses.dataclass(frozen=True)
class Churn:
  """From one checkpoint to the next: `distance` of the assignments, and that of unrelated ones of these sizes."""

  step: int
  distance: float
  random: float


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run of a report.

  Attributes:
    name: short, unlike the others' of the report.
    trained: the latest checkpoint.
    parameters: of its model.
    records: of `metrics.jsonl`.
    batches: the validation (micro-)batches that were read.
    layers: by `STACK/layer_I`, the encoder's first; empty for a dense model.
    churn: likewise, oldest first.
    unreadable: steps of damaged older checkpoints.
    texts: of every id in `layers`.
  """

  name: str
  trained: Trained
  parameters: ParameterCounts
  records: list[Record]
  batches: list[Batch]
  layers: dict[str, Layer]
  churn: dict[str, list[Churn]]
  unreadable: list[int]
  texts: dict[int, str]

  @property
  def leaks(self) -> bool:
    """Whether every loss of the run may know the future."""
    return self.trained.config.model.leaks_future

  @property
  def label(self) -> str:
    """The name, with the words that go with every loss of a run that leaks."""
    return f"{self.name} ({LEAKS})" if self.leaks else self.name

  def series(self, kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric in the records of one kind, without values that JSON cannot hold, such as NaN.

    Returns:
      `[n]` and `[n]`, or `[n]` and `[n, E]` where the metric has a value for each expert.
    """
    found = [(record["step"], record[metric]) for record in self.records if record["kind"] == kind and metric in record]
    finite = [(step, value) for step, value in found if not any(isinstance(x, str) for x in np.ravel(value).tolist())]
    return np.array([step for step, _ in finite]), np.array([value for _, value in finite], float)


def collect(workdirs: Sequence[str], batches: int) -> list[Run]:
  """Reads every run and passes `batches` validation batches through its checkpoints; nothing is written.

  Raises:
    WorkdirError, CheckpointError: a folder holds no run, or one without a readable checkpoint.
    ConfigError: a folder is given twice; the vocabulary is missing or another one.
    DataError: the validation split cannot be read, or is empty.
  """
  names = run_names(workdirs)
  latest = [restore(workdir, "latest") for workdir in workdirs]  # all of them before anything takes long
  return [_collect(*each, batches) for each in zip(names, workdirs, latest)]


def run_names(workdirs: Sequence[str]) -> list[str]:
  """The folders' names; where two are the same, those of all parents that tell them apart too.

  Raises:
    ConfigError: a folder is given twice.
  """
  paths = [pathlib.Path(os.path.abspath(workdir)).parts for workdir in workdirs]
  for index, path in enumerate(paths):
    require(path not in paths[:index], "--workdir", workdirs[index], "given twice; each run once")
  length = 1
  while len({path[-length:] for path in paths}) < len(paths):
    length += 1
  return [str(pathlib.PurePath(*path[-length:])) for path in paths]


def _collect(name: str, workdir: str, trained: Trained, batches: int) -> Run:
  vocabulary = open_vocabulary(trained.config)
  check_vocabulary(trained, vocabulary)
  micro = list(_micro_batches(trained, batches))
  layers = _layers(trained, micro)
  churn, unreadable = _churn(workdir, trained, layers, micro)
  metrics = Workdir(workdir).metrics
  ids = np.unique(np.concatenate([[0], *(layer.ids for layer in layers.values())]).astype(int))
  return Run(
    name=name,
    trained=trained,
    parameters=count_parameters(trained.config.model, 0.0),
    records=read_metrics(metrics) if metrics.exists() else [],
    batches=micro,
    layers=layers,
    churn=churn,
    unreadable=unreadable,
    texts=token_texts(vocabulary, ids),
  )


def _micro_batches(trained: Trained, batches: int) -> Iterator[Batch]:
  """The first batches of the validation split in the micro-batches of training: a routing group may be a whole one."""
  config = trained.config
  with open_pipeline(config, config.data.validation_split, training=False) as pipeline:
    read = list(itertools.islice(pipeline, batches))
  if not read:
    raise DataError(f"split {config.data.validation_split!r}", "holds no example")
  count = config.train.accumulation
  for batch in read:
    parts = micro_batches(batch, count)
    yield from ({name: array[index] for name, array in parts.items()} for index in range(count))


@functools.partial(jax.jit, static_argnames="graph")
def _route(graph: Any, params: Any, router_state: Any, batch: Batch) -> dict[str, Routing | None]:
  """Evaluation mode; what routing does not need, such as the logits, is not computed."""
  return merge(graph, params, router_state)(batch, training=False).routing


def _layers(trained: Trained, batches: Sequence[Batch]) -> dict[str, Layer]:
  """What the layers do with the batches' first `_MOST_TOKENS` tokens."""
  parts: dict[str, list[Layer]] = {}
  for batch in batches:
    routing = jax.device_get(_route(trained.graph, trained.params, trained.router_state, batch))
    for stack in ("encoder", "decoder"):
      if routing.get(stack) is not None:
        for index, layer in enumerate(stack_layers(trained.config.model, stack, routing[stack], batch)):
          parts.setdefault(f"{stack}/layer_{index}", []).append(layer)
  return {name: _joined(layers) for name, layers in parts.items()}


def stack_layers(model: ModelConfig, stack: str, routing: Routing, batch: Batch) -> list[Layer]:
  """What the MoE layers of one stack did with a batch, without its padding.

  Args:
    model: whose the routing is.
    stack: "encoder" or "decoder".
    routing: of its MoE layers, with their leading axis.
    batch: what the model read.
  """
  side = "inputs" if stack == "encoder" else "targets"
  segments = batch[f"{side}_segments"]
  ids = batch[side] if stack == "encoder" else np.asarray(shift_right(batch[side], segments))
  real, soft = segments > 0, isinstance(routing, SoftRouting)
  least = 1 / model.num_experts if soft else 0.0
  layers = []
  groups = getattr(model, f"{stack}_router").groups(*segments.shape)
  for table in expert_weights(routing, groups, *segments.shape):
    weights = table[real]
    layers.append(Layer(ids[real], batch[f"{side}_positions"][real], weights, weights > least, soft))
  return layers


def _joined(layers: Sequence[Layer]) -> Layer:
  names = ("ids", "positions", "weights", "chosen")
  arrays = {name: np.concatenate([getattr(layer, name) for layer in layers])[:_MOST_TOKENS] for name in names}
  return Layer(**arrays, soft=layers[0].soft)


def _churn(
  workdir: str, latest: Trained, layers: dict[str, Layer], batches: Sequence[Batch]
) -> tuple[dict[str, list[Churn]], list[int]]:
  """By layer, from every kept checkpoint to the next on the same batches; and the steps that could not be read."""
  churn: dict[str, list[Churn]] = {name: [] for name in layers}
  before, unreadable = None, []
  for step in kept_steps(workdir) if layers else []:
    try:
      now = layers if step == latest.step else _layers(restore(workdir, str(step)), batches)
    except CheckpointError:
      unreadable.append(step)
      continue
    for name in churn if before else ():
      pair = before[name].chosen, now[name].chosen
      churn[name].append(Churn(step, statistics.churn(*pair), statistics.random_churn(*pair)))
    before = now
  return churn, unreadable
