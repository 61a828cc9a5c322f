"""Compiles the train step for TPUs without having any: does it fit, what does it cost, where does the time go."""

from moe.parallel.mesh import make_mesh
from moe.planning import advice, compile, topology
from moe.planning.account import Plan, make_plan
from moe.training.experiment import ExperimentConfig

__all__ = ["Plan", "plan_for"]


def plan_for(config: ExperimentConfig, where: topology.Slice) -> Plan | str:
  """The plan of a config on a slice, or one line that says why it does not fit.

  Raises:
    ConfigError: the mesh does not fit the slice or the model, or the TPU compiler is not installed.
  """
  mesh = make_mesh(config.mesh, topology.devices(where))
  arguments = compile.argument_bytes(config, mesh)
  needed: float = arguments
  if arguments < where.chip.hbm:
    try:
      return make_plan(config, where, mesh, compile.compile_step(config, mesh), compile.forward_flops(config))
    except compile.DoesNotFit as error:
      needed = error.needed
  return advice.why_not(config, where, needed, arguments)
