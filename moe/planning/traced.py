"""FLOPs of the matrix products of a traced program, before any compiler has seen it: exact, and in no time.

A multiplication and an addition count as two. What is recomputed in the backward pass counts again. A product that sums
nothing, such as an outer product, is an elementwise operation and does not count; nor do solvers of linear systems.
"""

import collections
import math
from typing import Any, NamedTuple

from jax.extend.core import jaxprs_in_params

from moe.experts.kernels.rows import Mark, mark_of

_REFUSED = ("conv_general_dilated", "ragged_dot_general")


class Place(NamedTuple):
  """Where a program has products.

  Attributes:
    scopes: the names of the scopes around them, with slashes, as `jax.named_scope` and gradients write them.
    mark: of a loop or kernel whose work depends on data, which counts as one trip of it; None for all others.
  """

  scopes: str
  mark: Mark | None


# FLOPs by place.
TracedFlops = collections.Counter[Place]


def traced_flops(jaxpr: Any, platform: str, scopes: str = "") -> TracedFlops:
  """The FLOPs of a program for one device.

  Scans count with their length, conditionals as their most expensive branch, a kernel as it states. A loop whose trips
  depend on data has no products, or is marked with the rows that it computes (`kernels.rows.mark`).

  Args:
    jaxpr: such as `jax.jit(f).trace(...).jaxpr`.
    platform: "cpu", "tpu" or "gpu".
    scopes: around it.

  Raises:
    ValueError: products that nothing counts: in a loop or a conditional that depends on data, without a mark.
  """
  found: TracedFlops = collections.Counter()
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    here, params = f"{scopes}/{eqn.source_info.name_stack}", eqn.params
    match eqn.primitive.name:
      case "dot_general":
        found[Place(here, mark_of(here))] += _product(eqn)
      case "pallas_call" | "mpmd_map":
        found[Place(here, mark_of(here))] += params["cost_estimate"].flops
      case "scan":
        trip = traced_flops(params["jaxpr"], platform, here)
        found.update({place: params["length"] * flops for place, flops in trip.items()})
      case "while":
        trip = traced_flops(params["body_jaxpr"], platform, here) + traced_flops(params["cond_jaxpr"], platform, here)
        _require(all(place.mark for place in trip), here, "a loop whose trips depend on data")
        found.update(trip)
      case "cond" if params.get("branches_platforms"):
        branch = params["branches"][_branch(params["branches_platforms"], platform)]
        found.update(traced_flops(branch, platform, here))
      case "cond":
        branches = [traced_flops(branch, platform, here) for branch in params["branches"]]
        known = not any(place.mark for branch in branches for place in branch)
        _require(known, here, "a conditional that depends on data")
        found.update(max(branches, key=lambda branch: sum(branch.values())))
      case name:
        _require(name not in _REFUSED, here, name)
        for inner in jaxprs_in_params(params):
          found.update(traced_flops(inner, platform, here))
  return found


def _product(eqn: Any) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
  return 2 * math.prod(eqn.outvars[0].aval.shape) * summed if contracted else 0


def _branch(platforms: tuple[tuple[str, ...] | None, ...], platform: str) -> int:
  """The index of the platform's branch, or of the default, None."""
  name = "cuda" if platform == "gpu" else platform
  return next((i for i, some in enumerate(platforms) if some and name in some), platforms.index(None))


def _require(condition: bool, scopes: str, what: str) -> None:
  if not condition:
    raise ValueError(f"{what} has matrix products whose number nothing says, in {scopes}")
