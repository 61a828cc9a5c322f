"""What would make a model fit, as far as it is known without compiling again."""

import dataclasses
import math
from typing import Any

from moe.config import ConfigError
from moe.parallel.mesh import make_mesh
from moe.planning.compile import argument_bytes
from moe.planning.topology import GIB, Slice, devices
from moe.training.experiment import ExperimentConfig


def why_not(config: ExperimentConfig, where: Slice, needed: float, arguments: float) -> str:
  """One line: what is too large, and what would reduce it.

  Args:
    config: of the experiment.
    where: the slice that is too small.
    needed: bytes per chip that the compiler asked for.
    arguments: bytes per chip of parameters, optimizer statistics and batch.
  """
  room = where.chip.hbm / GIB
  if arguments > where.chip.hbm:
    size = f"parameters, statistics and batch alone need {arguments / GIB:.1f} of {room:.1f} GiB per chip"
  else:
    asked = f"a step needs {needed / GIB:.1f} of {room:.1f} GiB per chip"
    size = f"{asked}, of which parameters, statistics and batch are {arguments / GIB:.1f}"
  ways = _smaller_state(config, where, arguments) + _smaller_step(config, where, arguments)
  return f"does not fit on {where.name}: {size}" + (f"; {'; '.join(ways)}" if ways else "")


def _smaller_state(config: ExperimentConfig, where: Slice, arguments: float) -> list[str]:
  ways = []
  sharded = None if config.mesh.fsdp else _arguments(config, where, fsdp=True)
  if sharded is not None and arguments - sharded > 0.05 * where.chip.hbm:
    ways.append(f"mesh.fsdp=True would reduce these to {sharded / GIB:.1f}")
  if min(arguments, sharded or arguments) > where.chip.hbm:
    larger = (one for one in where.standard if one.chips > where.chips)
    enough = next((one for one in larger if (_arguments(config, one, fsdp=True) or math.inf) < one.chip.hbm), None)
    if enough:
      ways.append(f"{enough.name} is the smallest larger slice that holds them, with mesh.fsdp=True")
  return ways


def _smaller_step(config: ExperimentConfig, where: Slice, arguments: float) -> list[str]:
  ways: list[str] = []
  if arguments > where.chip.hbm:
    return ways
  if config.model.remat != "full":
    ways.append('model.remat="full" would keep only the input of each unit of blocks')
  parts = 2 * config.train.accumulation
  try:
    halved = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=parts))
    halved.check_mesh(make_mesh(config.mesh, devices(where)))
  except ConfigError:
    return ways
  return [*ways, f"train.accumulation={parts} would halve the rows per micro-batch"]


def _arguments(config: ExperimentConfig, where: Slice, **changes: Any) -> int | None:
  """Bytes per chip, with the axis `data` over all devices left; None if the mesh does not divide the model."""
  try:
    changed = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=-1, **changes))
    return argument_bytes(changed, make_mesh(changed.mesh, devices(where)))
  except ConfigError:
    return None
