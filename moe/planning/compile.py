"""Compiles the real train step for devices that need not exist here, from shapes alone: no data, no vocabulary."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moe.parallel.memory import shard_bytes
from moe.parallel.mesh import make_mesh, rows
from moe.planning import hlo
from moe.planning.costs import program_costs
from moe.training.experiment import ExperimentConfig
from moe.training.setup import Setup
from moe.training.state import abstract_model, keys, merge


class DoesNotFit(Exception):
  """The compiler refused the program because it needs too much memory.

  Attributes:
    needed: bytes per device that it asked for.
  """

  def __init__(self, needed: float):
    super().__init__(f"{needed} bytes")
    self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device.

  Attributes:
    arguments: state and batch; outputs: state and metrics, of which `aliased` reuse the arguments' memory.
    temporaries: everything else that is allocated during a step.
    peak: the most that is in use at any time, as the compiler counts it: this has to fit.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  peak: int


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled train step: its HLO text, its memory, and the seconds that tracing and compiling took."""

  text: str
  memory: Memory
  seconds: float


def compile_step(config: ExperimentConfig, mesh: Mesh) -> Program:
  """Compiles the train step of a config for a mesh.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
    DoesNotFit: it needs more memory than the devices have.
  """
  start = time.monotonic()
  traced = traced_step(config, mesh)
  try:
    compiled = traced.lower().compile()
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


def traced_step(config: ExperimentConfig, mesh: Mesh) -> jax.stages.Traced:
  """The train step of a config for a mesh, not yet compiled.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
  """
  setup = Setup(config, mesh)
  step = setup.train_step(np.zeros(config.model.vocab_size, np.int32))
  return step.trace(setup.abstract, _batch(config, mesh), setup.inputs(0))


def argument_bytes(config: ExperimentConfig, mesh: Mesh) -> int:
  """Bytes of state and batch per device, without compiling; layouts may add padding.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
  """
  return shard_bytes((Setup(config, mesh).abstract, _batch(config, mesh)))


def forward_flops(config: ExperimentConfig) -> tuple[int, bool]:
  """FLOPs of all matrix products of one forward pass over a micro-batch, on all devices together.

  Empty slots count: they are computed.

  Returns:
    The number, and whether it is exact: see `Costs.exact`.
  """
  mesh = make_mesh(devices=jax.devices("cpu")[:1])
  model = abstract_model(config.model.make, mesh)

  def forward(params: Any, router_state: Any, batch: Any, key: jax.Array) -> jax.Array:
    return merge(model.graph, params, router_state)(batch, training=True, key=key).logits

  batch = _batch(config, mesh, config.data.batch_size // config.train.accumulation)
  lowered = (
    jax.jit(forward).trace(model.params, model.router_state, batch, keys(0)[1]).lower(lowering_platforms=("tpu",))
  )
  found = program_costs(hlo.parse(lowered.as_text("hlo")), devices=1)
  return found.flops, found.exact


def _batch(config: ExperimentConfig, mesh: Mesh, size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  one = config.data.row_shape(config.model.row_format).empty(1)
  size = config.data.batch_size if size is None else size
  return {
    name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype, sharding=rows(mesh))
    for name, value in one.items()
  }


def _refusal(error: jax.errors.JaxRuntimeError) -> Exception:
  """`DoesNotFit` if the compiler ran out of memory, else the error itself."""
  text = str(error)
  wanted = re.search(r"Used ([\d.]+)([KMGT])\w* of|\(([\d.]+)([KMGT])\) exceeds available HBM", text)
  if "RESOURCE_EXHAUSTED" not in text or wanted is None:
    return error
  number, unit = (part for part in wanted.groups() if part)
  return DoesNotFit(float(number) * 1024 ** ("KMGT".index(unit) + 1))
