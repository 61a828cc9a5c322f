"""The real train step, compiled for devices that need not be here: from shapes alone, no data and no vocabulary."""

import dataclasses
import math
import re
import time
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from moe.data.rows import RowShape
from moe.models import make_model
from moe.parallel.mesh import make_mesh, rows
from moe.planning import hlo
from moe.planning.costs import program_costs
from moe.training.experiment import ExperimentConfig
from moe.training.setup import Setup
from moe.training.state import abstract_model, keys, merge


class DoesNotFit(Exception):
  """The compiler refused the program for want of memory.

  Attributes:
    needed: bytes that it asked for on each device, as far as it says.
  """

  def __init__(self, needed: float):
    super().__init__(f"{needed} bytes")
    self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device.

  Attributes:
    arguments: state and batch; outputs: state and metrics, of which `aliased` take the arguments' place.
    temporaries: everything else that lives during a step.
    peak: the most of all that is in use at any time, as the compiler counts it: what has to fit.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled train step: its HLO text, its memory, and how long tracing and compiling took, in seconds."""

  text: str
  memory: Memory
  seconds: float


def compile_step(config: ExperimentConfig, mesh: Mesh) -> Program:
  """Compiles the train step of a config for a mesh.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
    DoesNotFit: the devices' memory is too small.
  """
  start = time.monotonic()
  setup = Setup(config, mesh)
  step = setup.train_step(np.zeros(config.model.vocab_size, np.int32))
  try:
    compiled = cast(jax.stages.Wrapped, step).lower(setup.abstract, _batch(config, mesh)).compile()
  except jax.errors.JaxRuntimeError as error:
    raise _refusal(error) from None
  found = compiled.memory_analysis()
  memory = Memory(
    arguments=found.argument_size_in_bytes,
    outputs=found.output_size_in_bytes,
    aliased=found.alias_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    peak=found.peak_memory_in_bytes,
  )
  return Program(compiled.as_text(), memory, time.monotonic() - start)


def argument_bytes(config: ExperimentConfig, mesh: Mesh) -> int:
  """Bytes of state and batch on each device, known without compiling; layouts may add padding.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
  """

  def share(leaf) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

  return sum(map(share, jax.tree.leaves((Setup(config, mesh).abstract, _batch(config, mesh)))))


def forward_flops(config: ExperimentConfig) -> tuple[int, bool]:
  """FLOPs of all matrix products of one forward pass over a micro-batch, on any number of devices together.

  With slots, empty ones count: they are computed.

  Returns:
    The number, and whether it is all of them: a loop whose trips the data decides (dropless routing) counts once.
  """
  mesh = make_mesh(devices=jax.devices("cpu")[:1])
  model = abstract_model(lambda rngs: make_model(config.model, rngs), mesh)

  def forward(params, router_state, batch, key):
    return merge(model.graph, params, router_state)(batch, training=True, key=key).logits

  batch = _batch(config, mesh, config.data.batch_size // config.train.accumulation)
  lowered = (
    jax.jit(forward).trace(model.params, model.router_state, batch, keys(0)[1]).lower(lowering_platforms=("tpu",))
  )
  found = program_costs(hlo.parse(lowered.as_text("hlo")), devices=1)
  return found.flops, found.unknown_loops == 0


def _batch(config: ExperimentConfig, mesh: Mesh, size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  one = RowShape.of(config.data, config.model.architecture).empty(1)
  size = config.data.batch_size if size is None else size
  return {
    name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype, sharding=rows(mesh))
    for name, value in one.items()
  }


def _refusal(error: jax.errors.JaxRuntimeError) -> Exception:
  """`DoesNotFit` if that is what the compiler's error says, else the error itself."""
  text = str(error)
  wanted = re.search(r"Used ([\d.]+)([KMGT])\w* of|\(([\d.]+)([KMGT])\) exceeds available HBM", text)
  if "RESOURCE_EXHAUSTED" not in text or wanted is None:
    return error
  number, unit = (part for part in wanted.groups() if part)
  return DoesNotFit(float(number) * 1024 ** ("KMGT".index(unit) + 1))
