"""What would make a model fit: only what is known without compiling again."""

import dataclasses
import math

from moe.config import ConfigError
from moe.parallel.mesh import make_mesh
from moe.planning.compile import argument_bytes
from moe.planning.topology import GIB, Slice, devices
from moe.training.experiment import ExperimentConfig


def why_not(config: ExperimentConfig, where: Slice, needed: float, arguments: float) -> str:
  """One line: what was too large, and what would be less.

  Args:
    config: of the experiment.
    where: the slice that is too small.
    needed: bytes on each chip that the compiler asked for.
    arguments: bytes on each chip of parameters, optimizer statistics and batch.
  """
  room = where.chip.hbm / GIB
  if arguments > where.chip.hbm:
    size = f"parameters, statistics and batch alone need {arguments / GIB:.1f} of {room:.1f} GiB a chip"
  else:
    asked = f"a step asks for {needed / GIB:.1f} of {room:.1f} GiB a chip"
    size = f"{asked}, of which parameters, statistics and batch are {arguments / GIB:.1f}"
  ways = _smaller_state(config, where, arguments) + _smaller_step(config, where, arguments)
  return f"does not fit on {where.name}: {size}" + (f"; {'; '.join(ways)}" if ways else "")


def _smaller_state(config: ExperimentConfig, where: Slice, arguments: float) -> list[str]:
  ways = []
  sharded = None if config.mesh.fsdp else _arguments(config, where, fsdp=True)
  if sharded is not None and arguments - sharded > 0.05 * where.chip.hbm:
    ways.append(f"mesh.fsdp=True would make these {sharded / GIB:.1f}")
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
    ways.append('model.remat="full" would keep only what enters each unit of blocks')
  parts = 2 * config.train.accumulation
  try:
    halved = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=parts))
    halved.check_mesh(make_mesh(config.mesh, devices(where)))
  except ConfigError:
    return ways
  return [*ways, f"train.accumulation={parts} would halve the rows at once"]


def _arguments(config: ExperimentConfig, where: Slice, **changes) -> int | None:
  """Bytes on each chip, with as many rows of devices as there are; None where the mesh does not divide the model."""
  try:
    changed = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=-1, **changes))
    return argument_bytes(changed, make_mesh(changed.mesh, devices(where)))
  except ConfigError:
    return None
