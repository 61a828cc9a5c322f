"""The plan of one config on one slice: what its compiled step needs, where its time goes, what that buys.

Time is the compiler's own estimate for every instruction, in cycles at the chip's clock. Where there is no estimate, an
instruction counts as the bytes it touches at the memory's bandwidth and, after these, its products at the peak (a
custom kernel's as it states them), and a collective as the model of `moe.planning.collectives`; both are reported
separately. Times are added up as if nothing overlapped. Copies between
memories, which do overlap, are left out of the sum.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from moe.planning import hlo
from moe.planning.collectives import axes, seconds
from moe.planning.compile import Program
from moe.planning.costs import KINDS, Cost, Costs, program_costs
from moe.planning.parts import MOE_PARTS, part_of
from moe.planning.topology import Slice
from moe.training.experiment import ExperimentConfig


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is known about a step, in bytes, FLOPs and seconds, per device unless stated otherwise.

  Attributes:
    slice: name of the topology; chips: number of devices; mesh: sizes of its axes.
    memory: the fields of `Memory`; hbm: the memory available.
    flops: of the matrix products in a step; bytes: read from and written to memory.
    forward_flops_per_token: of the model, empty slots included, without recomputation, on all devices together.
    forward_is_exact: False if the data decides some of them; those are counted once.
    utilization: three forward passes, as a share of the chips' peak.
    kinds: seconds of a step by kind of instruction; parts: by part of the model.
    estimated: seconds that the compiler estimated.
    not_estimated: the rest by kind: `instructions`, `bytes` touched, and the `seconds` assumed for them.
    collectives: one entry per kind and axes: `kind`, `axes`, `runs`, `bytes`, `seconds`, and `hidden`, the seconds of
      asynchronous ones.
    prefetch: `bytes` and `seconds` of the copies that overlap with computation.
    unknown_loops: number of loops whose trip count depends on data; unknown: seconds of one trip of each.
    seconds: of a step if nothing overlaps; least: if all asynchronous collectives are hidden.
    tokens: per step, on all devices; run_tokens: in all of the config's steps.
    compile: seconds that tracing and compiling took; jax: the version that did it.
  """

  slice: str
  chips: int
  mesh: dict[str, int]
  memory: dict[str, int]
  hbm: float
  flops: int
  bytes: int
  forward_flops_per_token: float
  forward_is_exact: bool
  utilization: float
  kinds: dict[str, float]
  parts: dict[str, float]
  estimated: float
  not_estimated: dict[str, dict[str, float]]
  collectives: list[dict[str, Any]]
  prefetch: dict[str, float]
  unknown_loops: int
  unknown: float
  seconds: float
  least: float
  tokens: int
  run_tokens: int
  compile: float
  jax: str = jax.__version__

  @property
  def tokens_per_second(self) -> float:
    return self.tokens / self.seconds

  @property
  def moe_share(self) -> float:
    """The share of a step that MoE layers take."""
    return sum(self.parts.get(part, 0.0) for part in MOE_PARTS) / self.seconds

  def days(self, tokens: float | None) -> float:
    """Days to train on so many tokens, by default those of the run."""
    return (tokens or self.run_tokens) / self.tokens_per_second / 86_400


def make_plan(config: ExperimentConfig, where: Slice, mesh: Mesh, program: Program, forward: tuple[int, bool]) -> Plan:
  """Adds up the costs of a compiled step.

  Args:
    config: of the experiment.
    where: the slice that `mesh` is made of.
    mesh: the one that `program` was compiled for.
    program: from `compile_step`.
    forward: FLOPs of a micro-batch and whether they are exact, from `compile.forward_flops`.
  """
  found = program_costs(hlo.parse(program.text), mesh.size)
  timed = [(cost, _seconds(cost, mesh, where)) for cost in found.costs if cost.kind != "prefetch"]
  total = sum(time for _, time in timed)
  sent = _collectives(timed, mesh)
  tokens = tokens_per_step(config)
  per_token = forward[0] * config.train.accumulation / tokens
  return Plan(
    slice=where.name,
    chips=mesh.size,
    mesh=dict(mesh.shape),
    memory=dataclasses.asdict(program.memory),
    hbm=where.chip.hbm,
    flops=found.flops,
    bytes=sum(cost.runs * cost.bytes for cost in found.costs),
    forward_flops_per_token=per_token,
    forward_is_exact=forward[1],
    utilization=3 * per_token * tokens / mesh.size / where.chip.flops / total,
    kinds={kind: 0.0 for kind in KINDS} | _sums((cost.kind, time) for cost, time in timed),
    parts=_sums((part_of(cost.op_name), time) for cost, time in timed),
    estimated=sum(time for cost, time in timed if cost.cycles is not None),
    not_estimated=_not_estimated(timed),
    collectives=sent,
    prefetch=_prefetch(found, where),
    unknown_loops=found.unknown_loops,
    unknown=sum(time for cost, time in timed if not cost.known),
    seconds=total,
    least=total - sum(entry["hidden"] for entry in sent),
    tokens=tokens,
    run_tokens=tokens * config.train.steps,
    compile=program.seconds,
  )


def tokens_per_step(config: ExperimentConfig) -> int:
  """Inputs and targets of a batch, padding included."""
  return config.data.batch_size * (config.data.inputs_length + config.data.targets_length)


def _seconds(cost: Cost, mesh: Mesh, where: Slice) -> float:
  """Of all runs in a step."""
  if cost.collective is not None:
    return cost.runs * seconds(cost.collective, mesh, where)
  if cost.cycles is not None:
    return cost.runs * cost.cycles / where.chip.clock
  return cost.runs * (cost.touched / where.chip.bandwidth + cost.flops / where.chip.flops)


def _sums(entries: Iterable[tuple[str, float]]) -> dict[str, float]:
  """Totals by name, largest first."""
  found: dict[str, float] = collections.defaultdict(float)
  for name, value in entries:
    found[name] += value
  return dict(sorted(found.items(), key=lambda item: -item[1]))


def _not_estimated(timed: list[tuple[Cost, float]]) -> dict[str, dict[str, float]]:
  missing = [(c, time) for c, time in timed if c.cycles is None and c.collective is None]
  return {
    kind: {
      "instructions": sum(c.kind == kind for c, _ in missing),
      "bytes": sum(c.runs * c.touched for c, _ in missing if c.kind == kind),
      "seconds": sum(time for c, time in missing if c.kind == kind),
    }
    for kind in KINDS
    if any(c.kind == kind for c, _ in missing)
  }


def _collectives(timed: list[tuple[Cost, float]], mesh: Mesh) -> list[dict[str, Any]]:
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for cost, time in timed:
    if cost.collective is None:
      continue
    key = (cost.collective.kind, axes(cost.collective.groups, mesh))
    entry = found.setdefault(key, dict(zip(("kind", "axes"), key)) | dict.fromkeys(("runs", "bytes"), 0))
    entry["runs"] += cost.runs
    entry["bytes"] += cost.runs * cost.collective.bytes
    entry["seconds"] = entry.get("seconds", 0.0) + time
    entry["hidden"] = entry.get("hidden", 0.0) + time * cost.collective.hidden
  return sorted(found.values(), key=lambda entry: -entry["seconds"])


def _prefetch(found: Costs, where: Slice) -> dict[str, float]:
  moved = sum(cost.runs * cost.bytes for cost in found.costs if cost.kind == "prefetch")
  return {"bytes": moved, "seconds": moved / where.chip.bandwidth}
