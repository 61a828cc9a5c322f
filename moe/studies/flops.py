"""What a run computes: FLOPs of the matrix products of its train step, measured in the traced program.

The experts of a dropless routing compute what they are assigned, so that part is known after the run only, from the
assignments that its records have. All else is the same in every step: also the empty slots of experts with a capacity,
which are computed.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

import jax

from moe.config import require
from moe.experts.kernels.rows import Mark
from moe.parallel.mesh import make_mesh
from moe.parallel.platform import default_platform
from moe.planning.compile import traced_step
from moe.planning.traced import Place, TracedFlops, traced_flops
from moe.training.experiment import ExperimentConfig
from moe.training.metrics_file import Record


@dataclasses.dataclass(frozen=True)
class StackFlops:
  """The dropless experts of one stack.

  Attributes:
    layers: MoE layers of the stack.
    per_assignment: FLOPs of one assignment in one layer.
    padding: the most FLOPs that a step adds in all layers, because the last block of each expert's rows is filled up;
      on accelerators, where a router that may choose all experts chooses no more than two and a half on average.
  """

  layers: int
  per_assignment: int
  padding: int


@dataclasses.dataclass(frozen=True)
class StepFlops:
  """FLOPs of the matrix products of one train step, all micro-batches together.

  Attributes:
    fixed: of all that does not depend on data, empty slots included.
    dropless: by stack, of what does; {} if nothing does.
  """

  fixed: int
  dropless: Mapping[str, StackFlops]

  def of(self, assignments: Mapping[str, float]) -> float:
    """Without padding, given the assignments of each dropless stack, summed over its layers."""
    return self.fixed + sum(of.per_assignment * assignments[stack] for stack, of in self.dropless.items())


@dataclasses.dataclass(frozen=True)
class RunFlops:
  """FLOPs of a run up to one of its records.

  Attributes:
    step: of the record.
    per_step: mean over the steps since the record before.
    total: of all steps so far.
  """

  step: int
  per_step: float
  total: float


def step_flops(config: ExperimentConfig, *, forward: bool = False) -> StepFlops:
  """Measures a config's train step as it is for one device of this machine, without compiling it: seconds.

  All that is executed counts, also what the backward pass recomputes: by `model.remat`, and always the first product of
  dropless experts, so that these execute 7 products per assignment where slots execute 6 (11 and 9 with gated units).
  To match what methods activate, compare the forward pass alone. A mesh divides the same products.

  Dropless experts compute their rows in blocks, on CPUs of 64 or 256, on GPUs of 64 or 128, on TPUs of 128 or 256. Rows
  that only fill the last block of an expert are not in `per_assignment`; `padding` bounds them.

  Args:
    config: of the run.
    forward: whether to count only the forward pass, once.

  Raises:
    ConfigError: the config does not fit one device of this machine, or JAX finds none.
    ValueError: a loop whose trips depend on data has products that no metric counts.
  """
  platform = default_platform()
  found = traced_flops(traced_step(config, make_mesh(devices=jax.local_devices()[:1])).jaxpr, platform)
  if forward:
    parts = {*config.model.stacks, "vocabulary"}
    found = TracedFlops({place: flops for place, flops in found.items() if _is_forward(place, parts)})
  fixed = sum(flops for place, flops in found.items() if place.mark is None)
  stacks = {name: _dropless(found, name, config) for name in config.model.stacks}
  return StepFlops(fixed, {name: of for name, of in stacks.items() if of is not None})


def run_flops(flops: StepFlops, records: Iterable[Record]) -> list[RunFlops]:
  """FLOPs of a run at each of its training records, without padding.

  Args:
    flops: of the run's config.
    records: from `moe.training.metrics_file.read_metrics`; other kinds of records are ignored.

  Raises:
    ConfigError: a record before one of them is missing.
  """
  found, step, total = [], 0, 0.0
  for record in records:
    if record["kind"] != "train":
      continue
    steps = record["steps"]
    step += steps
    require(step == record["step"], "steps", steps, f"expected a record of every step before step {record['step']}")
    assignments = {stack: _assignments(record, stack, of.layers) / steps for stack, of in flops.dropless.items()}
    per_step = flops.of(assignments)
    total += steps * per_step
    found.append(RunFlops(step, per_step, total))
  return found


def _is_forward(place: Place, parts: set[str]) -> bool:
  """Whether it is in one of these scopes, and not in the backward pass."""
  return "transpose(" not in place.scopes and not parts.isdisjoint(_words(place))


def _words(place: Place) -> list[str]:
  return re.split(r"[/()]", place.scopes)


def _dropless(found: TracedFlops, stack: str, config: ExperimentConfig) -> StackFlops | None:
  """The dropless experts of a stack, whose layers all cost the same; None if it has none."""
  per_row: dict[Mark, Fraction] = collections.defaultdict(Fraction)
  for place, flops in found.items():
    if place.mark and stack in _words(place):
      per_row[place.mark] += Fraction(flops, place.mark.rows)
  if not per_row:
    return None
  depth = config.model.stacks[stack].depth
  wanted = "expected None with dropless experts, whose assignments are counted per token that their block takes"
  require(depth is None, f"config.model.{stack}.depth", depth, wanted)
  (of_all,) = set(per_row.values())  # blocks of several widths are alternatives for the same rows
  layers = sum(config.model.stacks[stack].has_experts)
  padding = max(mark.padding for mark in per_row)
  return StackFlops(layers, int(of_all / layers / config.train.accumulation), int(of_all * padding))


def _assignments(record: Record, stack: str, layers: int) -> float:
  """Of all layers and all steps of a record."""
  return record[f"{stack}/tokens"] * sum(record[f"{stack}/layer_{i}/assignments"] for i in range(layers))
